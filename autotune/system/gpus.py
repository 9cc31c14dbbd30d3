"""Which NVIDIA GPUs a process may use, found without CUDA and without torch.

NVML and `/proc` order GPUs by PCI bus; CUDA puts the fastest first unless `CUDA_DEVICE_ORDER` is
`PCI_BUS_ID`. So in a machine with GPUs of different models, a number in `CUDA_VISIBLE_DEVICES` may
mean another one here than there. UUIDs mean the same everywhere.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from autotune.system import cgroup
from autotune.system.nvml import Nvml, open_nvml

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_MIG_ENABLED = 1
_DRIVER = re.compile(r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)")
_NUMBER = re.compile(r"\+?\d+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What decides how fast a GPU trains.

    Attributes:
        name: The model.
        memory_bytes: All of its memory; None where only `/proc` tells of the GPU.
        mig_profile: Which part of the GPU this is, in NVIDIA's notation ("1g.10gb"); None for a
            whole one.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    memory_bytes: int | None
    mig_profile: str | None = None

    @property
    def memory_gib(self) -> int | None:
        """The same in whole GiB: drivers differ in what they keep for themselves."""
        return None if self.memory_bytes is None else round(self.memory_bytes / 2**30)

    def __str__(self) -> str:
        return self.name if self.mig_profile is None else f"{self.name} MIG {self.mig_profile}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, or a MIG part of one, as it can be asked for.

    Attributes:
        uuid: "GPU-…" or "MIG-…".
        gpu: What it is.
    """

    uuid: str
    gpu: Gpu


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoundGpus:
    """The GPUs that this process may use, and the version of their driver."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Board:
    """A physical GPU: itself, or the MIG parts that it is divided into, none of them perhaps."""

    uuid: str
    devices: tuple[Device, ...]
    is_divided: bool = False


def find_gpus(root: Path = cgroup.ROOT) -> FoundGpus:
    """The GPUs given to this process when it was started, by NVML or else by `/proc`.

    What a script writes into its own `CUDA_VISIBLE_DEVICES` later does not count, so that the
    command that tunes and the training that it tunes for find the same.

    Args:
        root: Where `proc` and `dev` are found.
    """
    visible = _starting_environment(root).get(VISIBLE_DEVICES)
    boards, driver = _proc_boards(root), _proc_driver(root)
    nvml = open_nvml(root)
    if nvml is not None:
        boards, driver = _nvml_boards(nvml), nvml.ask("nvmlSystemGetDriverVersion") or driver
        nvml.close()
    gpus = tuple(device.gpu for device in _select(boards, visible))
    return FoundGpus(gpus=gpus, driver=driver) if gpus else FoundGpus()


def visible_devices(nvml: Nvml, visible: str | None) -> tuple[Device, ...]:
    """The devices that CUDA enumerates, as far as NVML can tell.

    Args:
        nvml: Where to ask.
        visible: The value of `CUDA_VISIBLE_DEVICES`; None where it is not set.
    """
    return _select(_nvml_boards(nvml), visible)


def summary(gpus: Sequence[Gpu], *, with_memory: bool = False) -> str:
    """GPUs for people: "2x NVIDIA H100 80GB HBM3"; "none" where there are none."""

    def text(gpu: Gpu) -> str:
        told = with_memory and gpu.memory_gib is not None
        return f"{gpu} with {gpu.memory_gib} GiB" if told else str(gpu)

    numbers = collections.Counter(map(text, gpus))
    return ", ".join(f"{number}x {name}" for name, number in numbers.items()) or "none"


def _select(boards: Sequence[_Board], visible: str | None) -> tuple[Device, ...]:
    """The devices that CUDA enumerates of these, in the order in which it was asked for.

    An entry is the number of a GPU, its UUID, the UUID of a MIG part, or the beginning of either
    if that is unique. The first one that means nothing ends the list; one that is repeated empties
    it. Of MIG parts, CUDA takes a single one, and then no whole GPU beside it.

    Sources: the CUDA C++ Programming Guide, "CUDA Environment Variables"; torch/cuda/__init__.py,
    `_parse_visible_devices`; the MIG User Guide, "Device Enumeration".
    """
    if visible is None:
        chosen = [board.devices for board in boards]
    else:
        chosen = []
        for entry in visible.split(","):
            found = _meant(boards, entry.strip())
            if found is None:
                break
            if found in chosen:
                return ()
            chosen.append(found)
    devices = tuple(device for found in chosen for device in found)
    parts = [device for device in devices if device.gpu.mig_profile is not None]
    return (parts[0],) if parts else devices


def _meant(boards: Sequence[_Board], entry: str) -> tuple[Device, ...] | None:
    """The devices that one entry means; None where it is not valid."""
    if entry.startswith("GPU-"):
        whole = [board.devices for board in boards if board.uuid.startswith(entry)]
        return whole[0] if len(whole) == 1 else None
    if entry.startswith("MIG-"):
        parts = [
            (device,)
            for board in boards
            if board.is_divided
            for device in board.devices
            if device.uuid.startswith(entry)
        ]
        return parts[0] if len(parts) == 1 else None
    # As strtoul does: what follows the digits is ignored.
    number = _NUMBER.match(entry)
    index = int(number.group()) if number else -1
    return boards[index].devices if 0 <= index < len(boards) else None


def _nvml_boards(nvml: Nvml) -> list[_Board]:
    boards = []
    for index in range(nvml.ask("nvmlDeviceGetCount") or 0):
        handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
        name = handle and nvml.ask("nvmlDeviceGetName", handle)
        if not name:
            # A GPU that was lost keeps its number, and cannot be used.
            boards.append(_Board(uuid="", devices=()))
            continue
        uuid = nvml.ask("nvmlDeviceGetUUID", handle) or ""
        if is_divided(nvml, handle):
            parts = _mig_parts(nvml, handle, name)
            boards.append(_Board(uuid=uuid, devices=parts, is_divided=True))
        else:
            gpu = Gpu(name=name, memory_bytes=_memory_bytes(nvml, handle))
            boards.append(_Board(uuid=uuid, devices=(Device(uuid=uuid, gpu=gpu),)))
    return boards


def is_divided(nvml: Nvml, handle: Any) -> bool:  # noqa: ANN401
    """Whether a GPU is in MIG mode, and so used in parts."""
    modes = nvml.ask("nvmlDeviceGetMigMode", handle)
    return modes is not None and modes[0] == _MIG_ENABLED


def _mig_parts(nvml: Nvml, handle: Any, board_name: str) -> tuple[Device, ...]:  # noqa: ANN401
    parts = []
    for index in range(nvml.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        part = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        if part is None:
            continue
        gpu = Gpu(
            name=board_name,
            memory_bytes=_memory_bytes(nvml, part),
            mig_profile=_mig_profile(nvml, part),
        )
        parts.append(Device(uuid=nvml.ask("nvmlDeviceGetUUID", part) or "", gpu=gpu))
    return tuple(parts)


def _mig_profile(nvml: Nvml, part: Any) -> str:  # noqa: ANN401
    """The profile, from the end of the part's name ("… MIG 1g.10gb"), or from its slices."""
    _, found, profile = (nvml.ask("nvmlDeviceGetName", part) or "").partition(" MIG ")
    if found:
        return str(profile)
    has = nvml.ask("nvmlDeviceGetAttributes", part)
    if has is None:
        return "unknown"
    compute, slices = has.computeInstanceSliceCount, has.gpuInstanceSliceCount
    part_of = f"{compute}c." if compute != slices else ""
    return f"{part_of}{slices}g.{round(has.memorySizeMB / 1024)}gb"


def _memory_bytes(nvml: Nvml, handle: Any) -> int | None:  # noqa: ANN401
    memory = nvml.ask("nvmlDeviceGetMemoryInfo", handle)
    return None if memory is None else int(memory.total)


def _proc_boards(root: Path) -> list[_Board]:
    """What the driver writes into `/proc`: names and UUIDs, nothing of memory or MIG.

    A container sees the host's `/proc/driver`, and has the device files of its own GPUs only.
    """
    boards = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
        name, uuid = facts.get("Model", ""), facts.get("GPU UUID", "")
        is_here = (root / "dev" / f"nvidia{facts.get('Device Minor', 'ctl')}").exists()
        if name and is_here and facts.get("GPU Excluded", "No") == "No":
            device = Device(uuid=uuid, gpu=Gpu(name=name, memory_bytes=None))
            boards.append(_Board(uuid=uuid, devices=(device,)))
    return boards


def _proc_driver(root: Path) -> str | None:
    try:
        found = _DRIVER.search((root / "proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found.group(1) if found else None


def _starting_environment(root: Path) -> dict[str, str]:
    """The environment that this process was started with; source: proc_pid_environ(5)."""
    try:
        text = (root / "proc/self/environ").read_bytes().decode(errors="replace")
    except OSError:
        return dict(os.environ)
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
