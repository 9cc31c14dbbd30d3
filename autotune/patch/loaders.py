"""Gives the training's DataLoader of an untouched script its settings, also in trials."""

from __future__ import annotations

import atexit
import inspect
import sys
import warnings
from typing import Any

import wrapt

import autotune
from autotune.collector import DEFAULT, CollectorInit
from autotune.config import ThroughputConfig
from autotune.instrument.fork_server import current_trial
from autotune.instrument.optimizer_watch import optimizer_exists
from autotune.instrument.swap import swap_settings
from autotune.integrations.loaders import settings_of
from autotune.patch.places import place_of
from autotune.patch_target import PatchTarget

_IS_TARGET = "_autotune_is_target"
_IS_CONFIGURED = "_autotune_is_configured"


class PatchedLoaders:
    """The DataLoaders of this process, one of which is tuned.

    Its settings are asked for as late as possible, when the script begins to train: all that comes
    before is paid for once where trials are forked. A batch size must be there when it is
    made, since its length may decide of a schedule.

    Args:
        target: Which of them.
        config_path: The settings file; None in a trial, whose settings the coordinator gives.
    """

    def __init__(self, target: PatchTarget, config_path: str | None) -> None:
        self._target = target
        self._config_path = config_path
        self._config: ThroughputConfig | None = None
        self._num_made = self._num_passes = 0
        self._may_train = self._is_met = False

    def install(self, module: Any) -> None:  # noqa: ANN401
        """Take over `DataLoader` in the module that defines it."""
        wrapt.wrap_function_wrapper(module, "DataLoader.__init__", self._make)
        wrapt.wrap_function_wrapper(module, "DataLoader.__iter__", self._iterate)
        atexit.register(self._check_met)

    def _make(self, wrapped: Any, loader: Any, arguments: Any, options: Any) -> None:  # noqa: ANN401
        wrapped(*arguments, **options)
        if place_of(sys._getframe(1)).calls != self._target.calls:
            return
        ordinal = self._num_made % self._target.num_made
        self._num_made += 1
        if self._target.ordinal not in (None, ordinal):
            return
        vars(loader)[_IS_TARGET] = True
        # A batch sampler of its own decides of the batches.
        if self._target.tunes_batch_size and loader.batch_size is not None:
            config = self._settings(loader)
            if config.batch_size != loader.batch_size:
                given = inspect.signature(wrapped).bind(*arguments, **options).arguments
                # It refuses other values once it is made.
                del vars(loader)["_DataLoader__initialized"]
                wrapped(**{**given, "batch_size": config.batch_size})

    def _iterate(self, wrapped: Any, loader: Any, _: Any, __: Any) -> Any:  # noqa: ANN401
        if sys.modules["torch.utils.data"].get_worker_info() is not None:
            return wrapped()
        if vars(loader).get(_IS_TARGET):
            self._num_passes += 1
            if self._num_passes > self._target.first_pass:
                self._configure(loader)
        else:
            self._look_for_training()
        trial = current_trial()
        if trial is None:
            return wrapped()
        # Imported here: ordinary training needs none of it.
        from autotune.instrument.loops import loops_of

        return loops_of(trial).begin(
            loader, lambda _: wrapped(), has_optimizer=self._target.has_optimizer
        )

    def _configure(self, loader: Any) -> None:  # noqa: ANN401
        if vars(loader).get(_IS_CONFIGURED):
            return
        config = self._settings(loader)
        if config.num_workers and config.gc != DEFAULT:
            loader.worker_init_fn = CollectorInit(config.gc, loader.worker_init_fn)
        swap_settings(loader, config)
        vars(loader)[_IS_CONFIGURED] = True

    def _settings(self, loader: Any) -> ThroughputConfig:  # noqa: ANN401
        self._is_met = True
        if self._config is None:
            self._config = autotune.load_config(self._config_path, default=settings_of(loader))
        trial = current_trial()
        return self._config if trial is None else trial.config

    def _look_for_training(self) -> None:
        """Note whether this process trains, where its target was not met by now.

        One that prepares data, or evaluates, has no optimizer.
        """
        if self._config_path is None or self._is_met or self._may_train:
            return
        self._may_train = not self._target.has_optimizer or optimizer_exists()

    def _check_met(self) -> None:
        """Tell at the end of a training that the settings went nowhere."""
        if self._may_train and not self._is_met:
            warnings.warn(
                f"{self._config_path}: no DataLoader was made as at {self._target.place} where it "
                "was tuned, and its settings were not used: tune this script again",
                stacklevel=1,
            )
