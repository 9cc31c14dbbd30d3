"""The first look, in a process: what its loaders and optimizers do, told to the coordinator."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import sys
import threading
from pathlib import Path
from typing import Any

import wrapt

from autotune.instrument.effect_guard import EffectGuard
from autotune.instrument.left_files import LeftFiles
from autotune.instrument.loading import LoadingThreads
from autotune.instrument.optimizer_watch import optimizer_exists
from autotune.ipc.channel import CHANNEL_VARIABLE, Channel, ChannelClosedError
from autotune.patch.look import Answer, Look, Made
from autotune.patch.places import place_of
from autotune.patch_target import PatchTarget


class Observation:
    """Watches torch in this process until the training's loader is known, and ends here then.

    Args:
        notes: File that gets the paths of what steps create.
    """

    def __init__(self, notes: Path) -> None:
        self._look = Look(optimizer_exists)
        self._loading = LoadingThreads()
        self._trainer: int | None = None
        self._left_files = LeftFiles(notes, lambda: self._loading.is_step(self._trainer))
        self._is_guarded = self._is_over = False

    def watch_loaders(self, module: Any) -> None:  # noqa: ANN401
        """Have DataLoaders tell when they are made and when they give batches."""
        wrapt.wrap_function_wrapper(module, "DataLoader.__init__", self._make)
        wrapt.wrap_function_wrapper(module, "DataLoader.__iter__", self._iterate)
        wrapt.wrap_function_wrapper(module, "_BaseDataLoaderIter.__next__", self._give_batch)
        atexit.register(self._end)

    def watch_optimizers(self, module: Any) -> None:  # noqa: ANN401
        """Have all optimizers tell when they take a step."""
        module.register_optimizer_step_post_hook(self._step)

    def watch_gradients(self, module: Any) -> None:  # noqa: ANN401
        """Have autograd tell when it computes gradients."""
        wrapt.wrap_function_wrapper(module, "backward", self._compute_gradients)

    def found(self, target: PatchTarget) -> None:
        """A framework begins to train."""
        self._tell(Answer(target=target))

    def _make(self, wrapped: Any, loader: Any, arguments: Any, options: Any) -> None:  # noqa: ANN401
        wrapped(*arguments, **options)
        vars(loader)["_autotune_made"] = self._look.make(place_of(sys._getframe(1)))

    def _iterate(self, wrapped: Any, loader: Any, _: Any, __: Any) -> Any:  # noqa: ANN401
        iterator = wrapped()
        made: Made | None = vars(loader).get("_autotune_made")
        if made is not None:
            self._look.begin_pass(made)
            iterator._autotune_made = made
        return iterator

    def _give_batch(self, wrapped: Any, iterator: Any, _: Any, __: Any) -> Any:  # noqa: ANN401
        # Loaders in a worker of another loader feed that one.
        if sys.modules["torch.utils.data"].get_worker_info() is not None:
            return wrapped()
        self._guard()
        with self._loading:
            batch = wrapped()
        made: Made | None = getattr(iterator, "_autotune_made", None)
        if made is not None:
            self._tell(self._look.give_batch(made))
        return batch

    def _guard(self) -> None:
        """From the first batch on, note what steps leave in the file system."""
        if not self._is_guarded:
            self._is_guarded = True
            self._left_files.install()
            EffectGuard(self._left_files.note, lambda _: None).install()

    def _compute_gradients(self, wrapped: Any, _: Any, arguments: Any, options: Any) -> None:  # noqa: ANN401
        wrapped(*arguments, **options)
        self._tell(self._look.gradient())

    def _step(self, *_: Any) -> None:  # noqa: ANN401
        self._trainer = threading.get_native_id()
        self._tell(self._look.step())

    def _end(self) -> None:
        # After an exception the script's own words tell more.
        if not self._is_over and not hasattr(sys, "last_value"):
            self._tell(dataclasses.replace(self._look.conclude(), is_ending=True))

    def _tell(self, answer: Answer | None) -> None:
        if answer is None or self._is_over:
            return
        self._is_over = True
        start, _, path = os.environ.get(CHANNEL_VARIABLE, "").partition(":")
        with contextlib.suppress(ChannelClosedError):
            channel = Channel.connect(path)
            channel.send(type="look", start=start, pid=os.getpid(), **dataclasses.asdict(answer))
            if answer.is_ending and answer.target is None:
                # Its exit code tells, too, and what the command does next.
                return
            # The coordinator ends this process: the training must not go on.
            channel.receive()
        os._exit(0)
