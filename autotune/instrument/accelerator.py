"""The accelerator that this process uses, seen through torch; nothing here begins to use one."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from autotune.blocks import DeviceMemory

# Makes `torch.cuda.is_available`, and the same question of torch.accelerator and of Triton, ask the
# management library instead of initialising the CUDA driver, which no fork survives.
# Sources: the documentation of torch.cuda.is_available; triton-lang/triton, pull request 10933.
ASK_WITHOUT_CUDA = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "TRITON_NVML_BASED_CUDA_CHECK": "1",
}
# The CUDA driver's library, and what it answers before anything has initialised it. Source: cuda.h,
# CUDA_ERROR_NOT_INITIALIZED.
_DRIVER, _NOT_INITIALISED = "libcuda.so.1", 3
# torch's modules for accelerators whose initialisation can be asked for without causing it.
_MODULES = ("cuda", "xpu")


class Accelerator:
    """The devices on which this process has memory; it may have none.

    To look for them takes a tenth of a millisecond each, so that this is done between blocks.
    """

    def __init__(self) -> None:
        self._module: Any = None
        self._devices: tuple[int, ...] = ()

    @property
    def is_used(self) -> bool:
        """Whether there was one when `look` was called last."""
        return self._module is not None

    def look(self) -> None:
        """Find the devices that are used by now."""
        self._module = _module_in_use()
        if self._module is None or _is_mps(self._module):
            return
        self._devices = tuple(
            number
            for number in range(self._module.device_count())
            if self._module.memory_stats(number).get("reserved_bytes.all.peak", 0)
        )

    def synchronise(self) -> None:
        """Wait until the devices have done what they were given; at once where there are none."""
        if not self._devices:
            if not is_in_use():
                return
            self.look()
        if _is_mps(self._module):
            self._module.synchronize()
        for device in self._devices:
            self._module.synchronize(device)

    def memory(self) -> tuple[DeviceMemory, ...]:
        """What each device holds, and held at most."""
        self.look()
        if self._module is None:
            return ()
        if _is_mps(self._module):
            return (_memory_of_mps(self._module),)
        return tuple(self._memory(device) for device in self._devices)

    def num_allocations(self) -> int:
        """Times so far that tensors were given memory on the current device."""
        if not (_is_cuda(self._module) or getattr(self._module, "__name__", "") == "torch.xpu"):
            return 0
        return int(self._module.memory_stats().get("allocation.all.allocated", 0))

    def stall_clock(self) -> StallClock | None:
        """Tells how long the device waits for the host; None where there is none that can."""
        return StallClock(self._module) if _is_cuda(self._module) else None

    def _memory(self, device: int) -> DeviceMemory:
        stats = self._module.memory_stats(device)
        reserved = int(stats.get("reserved_bytes.all.peak", 0))
        free, total = _free_and_total(self._module, device)
        # What others took, and the context, are not torch's to tell; they are there all the time.
        idle = reserved - int(stats.get("reserved_bytes.all.current", reserved))
        return DeviceMemory(
            device=device,
            allocated_bytes=int(stats.get("allocated_bytes.all.peak", 0)),
            reserved_bytes=reserved,
            used_bytes=min(total, total - free + idle),
            total_bytes=total,
            num_retries=int(stats.get("num_alloc_retries", 0)),
        )


class StallClock:
    """How long a GPU stood still because the loop had no batch for it.

    The host's own wait does not tell: while kernels are queued the GPU has work to do. An event is
    put behind the work of each step, and another one in the stream when the next batch is there:
    what passes on the GPU between the two is time in which it had nothing to do.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.cuda.Event.html
    """

    # Two events take the host about 10 µs; of a step they may take so large a share.
    _EVENTS_S, _SHARE = 10e-6, 0.005

    def __init__(self, module: Any) -> None:  # noqa: ANN401
        self._module = module
        self._begun: Any = None
        self._pairs: list[tuple[Any, Any]] = []
        self._every = 1
        self._num_steps = 0

    def begin(self, step_s: float) -> None:
        """A block begins, in a loop whose steps take about so long."""
        self._pairs.clear()
        self._begun = None
        self._num_steps = 0
        self._every = max(1, round(self._EVENTS_S / (self._SHARE * max(step_s, 1e-6))))

    def ask(self) -> None:
        """The loop asks for a batch: the work of its step is queued."""
        self._num_steps += 1
        if self._num_steps % self._every == 0:
            self._begun = self._record()

    def get(self) -> None:
        """The batch is there."""
        if self._begun is not None:
            self._pairs.append((self._begun, self._record()))
            self._begun = None

    def stalled_s(self) -> float:
        """Seconds of the block; the device must have been waited for."""
        if not self._pairs:
            return 0.0
        milliseconds = sum(float(begun.elapsed_time(ended)) for begun, ended in self._pairs)
        return 1e-3 * milliseconds * self._num_steps / len(self._pairs)

    def _record(self) -> Any:  # noqa: ANN401
        event = self._module.Event(enable_timing=True)
        event.record()
        return event


def is_in_use() -> bool:
    """Whether this process has begun to use an accelerator; takes a microsecond."""
    return _module_in_use() is not None


def fork_obstacle() -> str | None:
    """What of an accelerator's driver does not survive a fork, or None."""
    torch = sys.modules.get("torch")
    for name in _MODULES:
        module = getattr(torch, name, None)
        if module is not None and module.is_initialized():
            return (
                f"{name.upper()} is initialised when load_config is called: call it before "
                "anything is put on the GPU, to have trials forked"
            )
    if _is_driver_initialised():
        return (
            "the CUDA driver is initialised when load_config is called, by something that asked "
            "for a device's properties or by another library than torch: call load_config before it"
        )
    return None


def num_compiled() -> int:
    """Graphs that `torch.compile` has compiled in this process so far."""
    utils = sys.modules.get("torch._dynamo.utils")
    counters = getattr(utils, "counters", None)
    return 0 if counters is None else int(counters["stats"]["unique_graphs"])


def _module_in_use() -> Any:  # noqa: ANN401
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None
    for name in _MODULES:
        module = getattr(torch, name, None)
        if module is not None and module.is_initialized():
            return module
    if sys.platform == "darwin" and torch.backends.mps.is_available():
        return torch.mps if torch.mps.current_allocated_memory() else None
    return None


def _is_mps(module: Any) -> bool:  # noqa: ANN401
    return getattr(module, "__name__", "") == "torch.mps"


def _is_cuda(module: Any) -> bool:  # noqa: ANN401
    return getattr(module, "__name__", "") == "torch.cuda"


def _free_and_total(module: Any, device: int) -> tuple[int, int]:  # noqa: ANN401
    """Bytes of a device that nobody holds, and all that it has."""
    try:
        free, total = module.mem_get_info(device)
    except (AttributeError, RuntimeError):
        # XPU drivers that do not tell what is free.
        total = module.get_device_properties(device).total_memory
        free = total - module.memory_reserved(device)
    return int(free), int(total)


def _memory_of_mps(module: Any) -> DeviceMemory:  # noqa: ANN401
    """Metal keeps no peaks: what is held now."""
    held = int(module.driver_allocated_memory())
    return DeviceMemory(
        device=0,
        allocated_bytes=int(module.current_allocated_memory()),
        reserved_bytes=held,
        used_bytes=held,
        total_bytes=max(held, int(module.recommended_max_memory())),
        num_retries=0,
    )


def _is_driver_initialised() -> bool:
    """Whether the CUDA driver is loaded and initialised; never loads it."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return False
    try:
        driver = ctypes.CDLL(_DRIVER, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        code = driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int(0)))
    except (OSError, AttributeError):
        return False
    return int(code) != _NOT_INITIALISED
