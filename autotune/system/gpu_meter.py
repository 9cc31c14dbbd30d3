"""What the GPUs that a training process uses did between two moments, as NVML tells it.

Read in the training process at the edges of blocks. Until torch has initialised CUDA there,
nothing is imported and nothing is asked; where NVML is not there or fails, nothing is known.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from autotune.system import cgroup
from autotune.system.gpus import VISIBLE_DEVICES, is_divided, visible_devices
from autotune.system.nvml import Nvml, open_nvml

_MILLI = 1e-3
# Source: nvml.h, nvmlSamplingType_t and nvmlClocksEventReasons.
_GPU_UTILISATION_SAMPLES = 1
_HW_SLOWDOWN = 0x08
_SW_THERMAL, _HW_THERMAL, _HW_POWER_BRAKE = 0x20, 0x40, 0x80
# A sample covers the time since the one before, of 1/6 s to 1 s (nvml.h, nvmlUtilization_t).
_LONGEST_WINDOW_US = 1_200_000
# A window counts where at least this share of it lies in the block.
_SHARE_WITHIN = 0.5
# It works for others: whose kernels it runs, nobody tells.
_SHARED_SERVER = "nvidia-cuda-mps"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """The counters at one moment.

    Attributes:
        at_us: Unix time in microseconds, which is how NVML stamps its samples.
        uuids: The GPUs that were read.
        energy_mj: Millijoules so far, GPU by GPU; None where one of them does not tell.
        reasons: Why the clocks of each are not higher, as bits; 0 where it does not tell.
    """

    at_us: int
    uuids: tuple[str, ...]
    energy_mj: tuple[int, ...] | None
    reasons: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Metered:
    """A device in use.

    Attributes:
        uuid: Its own.
        handle: It, or None where it is a MIG part that nobody names: what the whole GPU does is
            not what the part does.
        board: The whole GPU, which the clocks belong to.
        sees_own: Whether NVML names processes as this one is named: in a container it may know
            them by the host's numbers, or not at all.
    """

    uuid: str
    handle: Any
    board: Any
    sees_own: bool


class GpuMeter:
    """Meters the GPUs that this process uses.

    Args:
        root: Where `proc` and `dev` are found.
    """

    def __init__(self, root: Path = cgroup.ROOT) -> None:
        self._root = root
        self._nvml: Nvml | None = None
        self._has_tried = False
        self._uuids: tuple[str, ...] = ()
        self._devices: tuple[_Metered, ...] = ()

    def find_devices(self) -> None:
        """Look which GPUs are in use; takes milliseconds, so never within a block."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return
        if not self._has_tried:
            self._nvml = open_nvml(self._root)
            self._has_tried = True
        if self._nvml is not None:
            uuids = _uuids_in_use(self._nvml, torch)
            if uuids != self._uuids:
                found = [_metered(self._nvml, uuid) for uuid in uuids]
                told = tuple(device for device in found if device is not None)
                # Figures of a part of them would be taken for those of all.
                self._devices = told if len(told) == len(found) else ()
                self._uuids = uuids

    def read(self) -> GpuReading | None:
        """The counters now; None while no GPU is in use, and where NVML is not there."""
        if not self._has_tried:
            # Mostly, the uncounted steps before the first block are what puts anything on a GPU.
            self.find_devices()
        if self._nvml is None or not self._devices:
            return None
        energy = [self._ask("nvmlDeviceGetTotalEnergyConsumption", d) for d in self._devices]
        return GpuReading(
            at_us=time.time_ns() // 1000,
            uuids=tuple(device.uuid for device in self._devices),
            energy_mj=None if None in energy else tuple(energy),
            reasons=tuple(self._reasons(device) for device in self._devices),
        )

    def used_between(
        self, start: GpuReading | None, end: GpuReading | None, own_pids: Collection[int]
    ) -> dict[str, float | None]:
        """What happened between two readings, by the names of `blocks.Block`'s attributes.

        Args:
            start: The earlier reading.
            end: The later one, which was taken just now.
            own_pids: The processes of the trial.
        """
        if start is None or end is None or start.uuids != end.uuids:
            return {}
        return {
            "gpu_energy_j": _energy_j(start, end),
            "gpu_utilisation": self._utilisation(start.at_us, end.at_us),
            "gpu_other_utilisation": self._other_utilisation(start.at_us, end.at_us, own_pids),
            "gpu_throttled": _is_throttled(start, end),
        }

    def _ask(self, function: str, device: _Metered, *arguments: Any) -> Any:  # noqa: ANN401
        if self._nvml is None or device.handle is None:
            return None
        return self._nvml.ask(function, device.handle, *arguments)

    def _reasons(self, device: _Metered) -> int:
        assert self._nvml is not None
        # The newer name came with driver 535, the older one goes with CUDA 14.
        for name in ("Event", "Throttle"):
            found = self._nvml.ask(f"nvmlDeviceGetCurrentClocks{name}Reasons", device.board)
            if found is not None:
                return int(found)
        return 0

    def _utilisation(self, start_us: int, end_us: int) -> float | None:
        """Share of the time in which kernels ran, in the mean of the GPUs; None where untold.

        nvmlDeviceGetSamples gives what the driver has sampled, each sample with its time and over
        the time since the one before: 1/6 s on most GPUs, up to 1 s. So it is known which samples
        are those of a block of 0.25 s, mostly one or two, and how much of the block they cover;
        they are weighted with that. nvmlDeviceGetUtilizationRates gives the latest one alone, and
        not when it was taken. Where windows are longer than the block, nothing is told.
        """
        found = [self._utilisation_of(device, start_us, end_us) for device in self._devices]
        told = [share for share in found if share is not None]
        return sum(told) / len(told) if told and len(told) == len(found) else None

    def _utilisation_of(self, device: _Metered, start_us: int, end_us: int) -> float | None:
        # The first window within the block began with a sample before it.
        since_us = max(0, start_us - 2 * _LONGEST_WINDOW_US)
        answer = self._ask("nvmlDeviceGetSamples", device, _GPU_UTILISATION_SAMPLES, since_us)
        if answer is None:
            return None
        samples = sorted((int(s.timeStamp), int(s.sampleValue.uiVal)) for s in answer[1])
        covered_us = busy_us = 0.0
        for (before_us, _), (at_us, percent) in itertools.pairwise(samples):
            window_us = at_us - before_us
            within_us = min(at_us, end_us) - max(before_us, start_us)
            if percent > 100 or not 0 < window_us <= _LONGEST_WINDOW_US:
                continue
            if within_us >= _SHARE_WITHIN * window_us:
                covered_us += within_us
                busy_us += within_us * percent / 100
        return busy_us / covered_us if covered_us else None

    def _other_utilisation(self, start_us: int, end_us: int, own_pids: Collection[int]) -> float:
        """Share of its time that the GPU most used by others ran their kernels.

        nvmlDeviceGetProcessUtilization averages for each process over the samples since a time.
        What cannot be told counts as nothing: processes of other containers, those that have
        ended, MIG parts. A process that is stopped ran before the block, within the same sample:
        another trial of this run, for one.
        """
        shares = [0.0]
        for device in self._devices:
            if not device.sees_own:
                continue
            found = self._ask("nvmlDeviceGetProcessUtilization", device, start_us) or ()
            shares.append(
                sum(
                    int(sample.smUtil) / 100
                    for sample in found
                    # Some drivers leave samples in the list that they did not fill in.
                    if start_us < int(sample.timeStamp) <= end_us + _LONGEST_WINDOW_US
                    and 0 < int(sample.smUtil) <= 100
                    and int(sample.pid) not in own_pids
                    and _is_at_work(int(sample.pid))
                )
            )
        return min(1.0, max(shares))


def _uuids_in_use(nvml: Nvml, torch: ModuleType) -> tuple[str, ...]:
    """The devices on which this process holds memory, or which it has chosen.

    Where torch does not name them (before 2.5), all that it may use.
    """
    try:
        count = range(torch.cuda.device_count())
        used = [index for index in count if torch.cuda.memory_reserved(index)]
        used = used or [torch.cuda.current_device()]
        return tuple(str(torch.cuda.get_device_properties(index).uuid) for index in used)
    # A CUDA error is a RuntimeError, and torch asserts that devices exist.
    except (AttributeError, AssertionError, RuntimeError):
        found = visible_devices(nvml, os.environ.get(VISIBLE_DEVICES))
        return tuple(device.uuid for device in found)


def _metered(nvml: Nvml, uuid: str) -> _Metered | None:
    """The device of that UUID, which torch gives without the prefix."""
    plain = uuid.removeprefix("GPU-").removeprefix("MIG-")
    handle = nvml.ask("nvmlDeviceGetHandleByUUID", f"MIG-{plain}")
    if handle is not None:
        board = nvml.ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
        return _Metered(uuid=plain, handle=handle, board=board, sees_own=False)
    board = nvml.ask("nvmlDeviceGetHandleByUUID", f"GPU-{plain}")
    if board is None:
        return None
    running = nvml.ask("nvmlDeviceGetComputeRunningProcesses", board) or ()
    return _Metered(
        uuid=plain,
        handle=None if is_divided(nvml, board) else board,
        board=board,
        sees_own=os.getpid() in {int(process.pid) for process in running},
    )


def _is_at_work(pid: int) -> bool:
    """Whether that is a process which can be seen from here and runs."""
    try:
        process = psutil.Process(pid)
        still = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)
        return process.status() not in still and not process.name().startswith(_SHARED_SERVER)
    except (psutil.Error, ValueError):
        return False


def _energy_j(start: GpuReading, end: GpuReading) -> float | None:
    """Joules between two readings; the counters go on from when the driver was loaded.

    They are renewed every 20 to 100 ms, so that what a single short block used may be off by as
    much as that; over consecutive blocks it cancels.

    Source: Yang, Adamek and Armour 2023, "Part-time Power Measurements: nvidia-smi's Lack of
    Attention" (arXiv:2312.02741).
    """
    if start.energy_mj is None or end.energy_mj is None:
        return None
    used_mj = [after - before for before, after in zip(start.energy_mj, end.energy_mj, strict=True)]
    return _MILLI * sum(used_mj) if min(used_mj) >= 0 else None


def _is_throttled(start: GpuReading, end: GpuReading) -> bool:
    """Whether heat or the power supply slowed a GPU's clocks.

    Its own power limit (the software power cap) holds in training as well, and idle clocks say
    that it had nothing to do. "Hardware slowdown" is also told for a moment while clocks change,
    so it counts only where it is seen at both ends.

    Source: nvml.h, nvmlClocksEventReasonHwSlowdown and the constants around it.
    """
    sure = _SW_THERMAL | _HW_THERMAL | _HW_POWER_BRAKE
    return any(
        (before | after) & sure or before & after & _HW_SLOWDOWN
        for before, after in zip(start.reasons, end.reasons, strict=True)
    )
