"""What the optimizers of a training do: their steps, and what these make of the parameters."""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from autotune.instrument.loop_region import LoopRegion


class OptimizerWatch:
    """Sees each step of each of torch's optimizers, from its making on.

    A loop that updates its parameters by itself is not seen. Steps that a gradient scaler skips are
    not counted, since the optimizer does not take them.

    Attributes:
        total: Steps so far, of all optimizers together.
        region: The loop of the last step, where it is not the one that asks for batches: a thread
            or a coroutine of its own may do that.
    """

    def __init__(self) -> None:
        self.total = 0
        self.region: LoopRegion | None = None
        self._asking: LoopRegion | None = None
        self._is_found = False
        self._own_directory = ""
        self._num_steps: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._is_hooked = False
        self.hook()

    def hook(self) -> None:
        """Begin to watch, once torch's optimizers are loaded: they are with the first one."""
        module = sys.modules.get("torch.optim.optimizer")
        if module is not None and not self._is_hooked:
            self._is_hooked = True
            self._own_directory = str(Path(module.__file__ or "").parents[1])
            module.register_optimizer_step_post_hook(self._note)

    def follow(self, asking: LoopRegion) -> None:
        """Take note of the loop that asks for the training's batches."""
        if asking is not self._asking:
            self._asking, self._is_found = asking, False

    def counts(self) -> Mapping[Any, int]:
        """Steps so far by optimizer, for `updates_since`."""
        return dict(self._num_steps)

    def updates_since(self, before: Mapping[Any, int]) -> int:
        """Updates of the parameters since `counts` was asked.

        Where several optimizers share the work, those of the one that took the most steps.
        """
        return max((n - before.get(which, 0) for which, n in self._num_steps.items()), default=0)

    def all_finite(self) -> bool | None:
        """Whether no parameter is NaN or infinite; None where no optimizer has taken a step."""
        parameters = self._parameters()
        if not parameters:
            return None
        torch: Any = sys.modules["torch"]
        with torch.no_grad():
            return all(bool(torch.isfinite(parameter).all()) for parameter in parameters)

    def num_parameters(self) -> int | None:
        """Numbers that are learned, those of this process; None as for `all_finite`."""
        sizes = {id(parameter): int(parameter.numel()) for parameter in self._parameters()}
        return sum(sizes.values()) if sizes else None

    def _parameters(self) -> list[Any]:
        """Of all optimizers that have taken a step."""
        return [
            parameter
            for optimizer in self._num_steps
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]

    def _note(self, optimizer: Any, *_: Any) -> None:  # noqa: ANN401
        self.total += 1
        self._num_steps[optimizer] = self._num_steps.get(optimizer, 0) + 1
        # Once for each pass, unless the steps are taken elsewhere.
        if not self._is_found:
            self._find_loop(sys._getframe(1))

    def _find_loop(self, frame: FrameType | None) -> None:
        """Find out whether a step is taken in the loop that asks for batches."""
        while frame is not None and frame.f_code.co_filename.startswith(self._own_directory):
            frame = frame.f_back
        asking = self._asking
        if asking is None:
            return
        if asking.is_around(frame):
            self.region, self._is_found = None, True
            return
        region = LoopRegion(frame, asks=False)
        # Where a backward pass runs in a thread of torch's, so does a step in one of its hooks.
        if region.is_known:
            self.region = region


# Torch's optimizers in this process; None until they were looked for.
_optimizers: weakref.WeakSet[Any] | None = None


def optimizer_exists() -> bool:
    """Whether this process has one of torch's optimizers.

    The first call that finds torch loaded looks at every object, which takes 0.1 s with a large
    framework. From then on they are noted as they are made, in what is forked from here as well.
    """
    global _optimizers
    module = sys.modules.get("torch.optim.optimizer")
    if module is None:
        return False
    if _optimizers is None:
        # Not isinstance, which asks objects for their __class__, and some answer with warnings.
        kind = module.Optimizer
        _optimizers = weakref.WeakSet(o for o in gc.get_objects() if issubclass(type(o), kind))
        kind.__init__ = _noting(kind.__init__, _optimizers)
        kind.__setstate__ = _noting(kind.__setstate__, _optimizers)
    return bool(_optimizers)


def _noting(make: Callable[..., None], optimizers: weakref.WeakSet[Any]) -> Callable[..., None]:
    """A method that sets an optimizer up, which notes that there is one."""

    @functools.wraps(make)
    def noted(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        optimizers.add(self)
        make(self, *args, **kwargs)

    return noted
