"""The loops of a script in a trial, and which of them is the training.

A script may go through several loaders: to evaluate before training, every hundred steps, or after
each epoch; and one step may take from several of them. The training is the loop in which an
optimizer takes steps. All others run as they are.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from autotune.instrument import schedules, torch_loader
from autotune.instrument.effect_guard import EffectGuard
from autotune.instrument.fork_server import TrialProcess
from autotune.instrument.left_files import LeftFiles
from autotune.instrument.loader_facts import is_iterable_dataset
from autotune.instrument.loading import LoadingThreads
from autotune.instrument.loop_region import LoopRegion, is_unwinding
from autotune.instrument.optimizer_watch import OptimizerWatch, optimizer_exists
from autotune.instrument.prepared_loader import begin_alone
from autotune.instrument.revisit import preload
from autotune.instrument.stand_in import MeasuredIterator, MeasuredLoader, Pass, UnitCounter
from autotune.instrument.training_loop import TrainingLoop
from autotune.measurement import FailureCause

# A loop without an optimizer step is taken for the training after so long: gradients may be scaled
# and steps skipped at first, or accumulated over many batches.
_PATIENCE_S = 30.0
_NO_OPTIMIZER = "no optimizer takes a step in this loop"


class Loops:
    """Feeds every loop of a trial.

    Args:
        trial: The line to the coordinator.
    """

    def __init__(self, trial: TrialProcess) -> None:
        self._trial = trial
        self._watch = OptimizerWatch()
        self._has_optimizer = trial.has_optimizer
        self._training: TrainingLoop | None = None
        # Passes asked since the last optimizer step, the first one first.
        self._turn: list[weakref.ref[Pass]] = []
        self._steps_seen = self._watch.total
        self._first_ask_s: float | None = None
        self._first_batch_at_s: float | None = None
        self._region: LoopRegion | None = None
        self._loading = LoadingThreads()
        # One for each loader: its passes may share an iterator, and be held by several threads.
        self._locks: dict[int, threading.RLock] = {}
        self._seen_datasets: set[int] = set()
        self._left_files = LeftFiles(trial.notes, self._is_in_step)
        self._left_files.install()
        trial.before_failing = self._end_if_overrun
        EffectGuard(self._before, self._end_with).install()

    def loader(self, loader: Iterable[Any], units: UnitCounter | None) -> MeasuredLoader:
        """The stand-in for a loader of the script."""
        self._prepare(loader)
        stand_in = MeasuredIterator if isinstance(loader, Iterator) else MeasuredLoader
        return stand_in(loader, self, units)

    def begin(
        self,
        loader: Iterable[Any],
        begin: Callable[[Any], Iterator[Any]],
        *,
        has_optimizer: bool,
    ) -> Pass:
        """One pass over a loader that is no stand-in.

        Args:
            loader: It.
            begin: Starts an epoch of it.
            has_optimizer: Whether it is known that optimizers take steps.
        """
        self._has_optimizer = self._has_optimizer or has_optimizer
        self._prepare(loader)
        return Pass(self, loader, None, begin)

    def _prepare(self, loader: Iterable[Any]) -> None:
        torch_loader.install()
        begin_alone(loader)
        schedules.outlast()
        self._repeat_samples(loader)

    def _repeat_samples(self, loader: Any) -> None:  # noqa: ANN401
        """Have a loader draw from samples that its dataset has loaded, where that is asked for."""
        number = self._trial.num_repeated
        dataset = getattr(loader, "dataset", None)
        if id(dataset) in self._seen_datasets:
            return
        self._seen_datasets.add(id(dataset))
        if number and dataset is not None and not is_iterable_dataset(dataset):
            torch_loader.repeat_samples(dataset, preload(dataset, number))

    def next_batch(self, asking: Pass) -> Any:  # noqa: ANN401
        """The next batch of a pass, or END."""
        lock = self._locks.setdefault(id(asking.loader), threading.RLock())
        with self._loading, lock:
            return self._next_batch(asking)

    def _is_in_step(self) -> bool:
        apart = self._watch.region
        trainer = None if apart is None else apart.thread
        return self._first_ask_s is not None and self._loading.is_step(trainer)

    def _find_region(self) -> LoopRegion | None:
        """The training loop, or the one that asks for batches while it is not known."""
        return self._watch.region or (self._training.region if self._training else self._region)

    def _next_batch(self, asking: Pass) -> Any:  # noqa: ANN401
        self._watch.hook()
        if self._training is None:
            assert asking.region is not None
            self._region = asking.region
            self._watch.follow(asking.region)
            self._look_for_training(asking)
        if self._training is not None:
            return self._training.next_batch(asking)
        batch = asking.source.take_once()
        if self._first_batch_at_s is None:
            self._first_batch_at_s = time.monotonic()
        return batch

    def given_up(self, gone: Pass) -> None:
        """The script will take no more batches from a pass."""
        training = self._training
        if training is None or not training.give_up(gone):
            return
        region = self._watch.region or training.region
        # The frames that gave it up are below this one and the pass's own.
        if region.ends_with_its_iterator and not is_unwinding(sys._getframe(2)):
            self._end()

    def _look_for_training(self, asking: Pass) -> None:
        """Decide whether the training is among the loops that took batches by now."""
        now_s = time.monotonic()
        self._first_ask_s = self._first_ask_s or now_s
        if self._watch.total > self._steps_seen:
            self._steps_seen = self._watch.total
            asked = [found for reference in self._turn if (found := reference()) is not None]
            self._turn = []
            for found in asked:
                if not found.is_over:
                    # Of batches that are read ahead, nobody knows which the step took.
                    num_asked = found.num_asked if self._watch.region is None else None
                    self._train(found, steps_per_update=num_asked)
                    return
        elif _gradients_are_on():
            self._has_optimizer = self._has_optimizer or optimizer_exists()
            if not self._has_optimizer or now_s - self._first_ask_s > _PATIENCE_S:
                self._train(asking, notes=(_NO_OPTIMIZER,))
                return
        if all(reference() is not asking for reference in self._turn):
            self._turn.append(weakref.ref(asking))

    def _train(
        self, leader: Pass, *, steps_per_update: int | None = None, notes: tuple[str, ...] = ()
    ) -> None:
        self._training = TrainingLoop(
            self._trial,
            self._watch,
            leader,
            steps_per_update=steps_per_update,
            first_batch_at_s=self._first_batch_at_s,
            notes=notes,
        )

    def _before(self, event: str, args: tuple[Any, ...]) -> None:
        """Something is about to happen that reaches beyond this process."""
        self._stop_if_left()
        self._left_files.note(event, args)

    def _stop_if_left(self) -> None:
        """Return if the process is inside the training, or not there yet; else stop for good."""
        region = self._find_region()
        if region is None or not region.is_left:
            return
        error = sys.exc_info()[1]
        if error is not None and region.is_passed_by(error):
            # What follows is the script's way of dealing with it, or of cleaning up.
            self._trial.fail(error)
        if self._training is not None:
            self._end()

    def _end_if_overrun(self, error: BaseException) -> None:
        """Take an exception for the end of the loop where it comes of going on for too long.

        A trial feeds its loop beyond the end of the data. A schedule may be made for as many steps
        as the training has, and be used up: a list of rates, or one that checks its end.
        """
        if self._training is not None and self._training.is_overrun_by(error):
            self._end()

    def _end_with(self, exit_code: object) -> NoReturn:
        """The script has come to its end."""
        if exit_code:
            self._trial.end(FailureCause.CRASHED, f"the script ended by sys.exit({exit_code!r})")
        self._end()

    def _end(self) -> NoReturn:
        """Stop for good: the script takes no more batches."""
        if self._training is not None:
            self._training.end()
        self._trial.end(
            FailureCause.LOOP_ENDED,
            "the command ended without an optimizer step in a loop over autotune.steps",
        )


@functools.cache
def loops_of(trial: TrialProcess) -> Loops:
    """The loops of this process, while it is a trial."""
    return Loops(trial)


def _gradients_are_on() -> bool:
    """Whether torch records gradients; it does not in an evaluation, as a rule."""
    torch = sys.modules.get("torch")
    return torch is None or bool(torch.is_grad_enabled())
