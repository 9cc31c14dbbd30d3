"""How long a loop stands still while it copies its batches to a GPU."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# Methods of tensors that copy to another device, and wait for it unless they are told not to.
# Source: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.to.html (non_blocking).
_COPYING = frozenset(("to", "cuda", "xpu"))


class CopyWatch:
    """Sees the calls by which a thread copies tensors from the host to a device.

    Attributes:
        copy_s: Seconds in these calls so far.

    Args:
        num_allocations: How often memory was given out on the device so far: a conversion that
            stays on the host takes none there.
    """

    def __init__(self, num_allocations: Callable[[], int]) -> None:
        self.copy_s = 0.0
        self._num_allocations = num_allocations
        self._num_before = 0
        self._begun_s: float | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at what this thread calls; whoever looks already, such as a profiler, goes on."""
        if sys.getprofile() is not None:
            yield
            return
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, called: Any) -> None:  # noqa: ANN401
        if event == "c_call" and called.__name__ in _COPYING and _is_on_host(called.__self__):
            self._num_before = self._num_allocations()
            self._begun_s = time.perf_counter()
        elif (
            event in ("c_return", "c_exception")
            and self._begun_s is not None
            and called.__name__ in _COPYING
        ):
            seconds = time.perf_counter() - self._begun_s
            self._begun_s = None
            if self._num_allocations() > self._num_before:
                self.copy_s += seconds


def _is_on_host(thing: Any) -> bool:  # noqa: ANN401
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.Tensor) and thing.device.type == "cpu"
