"""Learning-rate schedules that end before a trial does."""

from __future__ import annotations

import functools
import sys
from typing import Any


def outlast() -> None:
    """Let schedules stay as they are once their last step is over.

    A trial goes on for longer than a short training. `OneCycleLR` raises a ValueError when it is
    stepped once too often, a list of rates an IndexError. Both are without effect on the speed.
    """
    module = sys.modules.get("torch.optim.lr_scheduler")
    if module is not None and not hasattr(module.LRScheduler, "_autotune_outlasts"):
        module.LRScheduler._autotune_outlasts = True
        module.LRScheduler.step = _outlasting(module.LRScheduler.step)


def _outlasting(original: Any) -> Any:  # noqa: ANN401
    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            return original(self, *args, **kwargs)
        except (IndexError, ValueError):
            # What fails at once fails in training, too.
            if self.last_epoch <= 1:
                raise
            return None

    return step
