"""Whether a training is still sound: what its optimizers have made of the parameters."""

from __future__ import annotations

import sys
import weakref
from typing import Any


class FiniteWatch:
    """Knows the optimizers that have taken a step since it was made.

    A loop that updates its parameters by itself is not seen, nor one that makes its first optimizer
    later.
    """

    def __init__(self) -> None:
        self._optimizers: weakref.WeakSet[Any] = weakref.WeakSet()
        # Loaded with the first optimizer, and not before: it takes long.
        optimizers = sys.modules.get("torch.optim.optimizer")
        if optimizers is not None:
            optimizers.register_optimizer_step_post_hook(self._note)

    def all_finite(self) -> bool | None:
        """Whether no parameter is NaN or infinite; None where no optimizer has taken a step."""
        parameters = [
            parameter
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        if not parameters:
            return None
        torch: Any = sys.modules["torch"]
        with torch.no_grad():
            return all(bool(torch.isfinite(parameter).all()) for parameter in parameters)

    def _note(self, optimizer: Any, *_: Any) -> None:  # noqa: ANN401
        self._optimizers.add(optimizer)
