"""What the optimizers of a training do: their steps, and what these make of the parameters."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Mapping
from typing import Any


class OptimizerWatch:
    """Sees each step of each of torch's optimizers, from its making on.

    A loop that updates its parameters by itself is not seen. Steps that a gradient scaler skips are
    not counted, since the optimizer does not take them.

    Attributes:
        total: Steps so far, of all optimizers together.
    """

    def __init__(self) -> None:
        self.total = 0
        self._num_steps: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._is_hooked = False
        self.hook()

    def hook(self) -> None:
        """Begin to watch, once torch's optimizers are loaded: they are with the first one."""
        module = sys.modules.get("torch.optim.optimizer")
        if module is not None and not self._is_hooked:
            self._is_hooked = True
            module.register_optimizer_step_post_hook(self._note)

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
        parameters = [
            parameter
            for optimizer in self._num_steps
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        if not parameters:
            return None
        torch: Any = sys.modules["torch"]
        with torch.no_grad():
            return all(bool(torch.isfinite(parameter).all()) for parameter in parameters)

    def _note(self, optimizer: Any, *_: Any) -> None:  # noqa: ANN401
        self.total += 1
        self._num_steps[optimizer] = self._num_steps.get(optimizer, 0) + 1


def optimizer_exists() -> bool:
    """Whether this process has one of torch's optimizers. Looks at every object: takes 50 ms."""
    module = sys.modules.get("torch.optim.optimizer")
    # Not isinstance, which asks objects for their __class__, and some answer with warnings.
    return module is not None and any(
        issubclass(type(found), module.Optimizer) for found in gc.get_objects()
    )
