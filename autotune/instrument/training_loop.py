"""The training loop of a trial: the passes that feed it, and what happens outside of its steps."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
import weakref
from typing import Any, NoReturn

from autotune.blocks import LoopFacts
from autotune.instrument import stand_in
from autotune.instrument.fork_server import TrialProcess
from autotune.instrument.loader_facts import describe_loader, is_dataloader
from autotune.instrument.loop_region import LoopRegion
from autotune.instrument.optimizer_watch import OptimizerWatch
from autotune.instrument.ranks import find_place
from autotune.instrument.sample_count import SampleCounter
from autotune.instrument.sharding import repeats_samples
from autotune.instrument.stand_in import Pass
from autotune.instrument.swap import is_swappable
from autotune.instrument.timed_loop import LoopEndedError, TimedLoop
from autotune.measurement import FailureCause
from autotune.torch_flags import set_otherwise

_DISPATCHED = (
    "one rank reads the batches of all (Accelerate's dispatch_batches), so that step and loader "
    "cannot be timed by themselves"
)
# A pass that a thread holds, and that was not asked for during so many steps which another pass
# fed, was left by the script: its thread waits for ever.
_ABANDONED_STEPS = 4


class TrainingLoop:
    """The loop that is measured, and the others as far as they touch it.

    Where one step takes from several loaders, the one asked first is counted; the others follow
    it, and begin again when their data ends. An evaluation between two steps is not counted.

    Attributes:
        region: Where it stands in the script.

    Args:
        trial: The line to the coordinator.
        watch: Sees the optimizer steps.
        leader: The pass that feeds it.
        steps_per_update: Batches up to its first optimizer step; None where there was none.
        first_batch_at_s: Monotonic time of the script's first batch; None if it had none yet.
        notes: What to tell the user.
    """

    def __init__(
        self,
        trial: TrialProcess,
        watch: OptimizerWatch,
        leader: Pass,
        *,
        steps_per_update: int | None,
        first_batch_at_s: float | None,
        notes: tuple[str, ...],
    ) -> None:
        assert leader.region is not None
        self.region: LoopRegion = leader.region
        self._trial = trial
        self._watch = watch
        self._leader = weakref.ref(leader)
        # A pass that is given up can no longer be asked for by the reference.
        self._leader_id: int | None = id(leader)
        self._loader = leader.loader
        self._units = leader.units
        self._steps_per_update = steps_per_update
        self._notes = notes
        self._facts = describe_loader(leader.loader, trial.config)
        self._counter = SampleCounter(
            self._facts.batch_size or trial.config.batch_size,
            is_certain=self._facts.batch_size is not None,
            counts_batches=trial.config.batch_size == 1 and _has_own_batches(leader.loader),
        )
        self._num_fed = 0
        self._fed_at_s = 0.0
        self._left_at_s: float | None = None
        # The evaluation between two batches: when it began and ended, and the optimizer steps that
        # were taken before and by its end.
        self._nested_s: tuple[float, float] | None = None
        self._nested_steps = (0, 0)
        trial.find_others()
        kind = _kind_of_loop(trial)
        self._loop = kind(trial, watch, count=self._count, facts=self._describe)
        self._loop.source = leader.source
        self._loop.first_batch_at_s = first_batch_at_s
        self._batches = self._loop.batches()
        # Threads of the script may take batches, and another one end the loop.
        self._lock = threading.RLock()
        self._taker: int | None = None
        self._steps_of_others = 0

    def next_batch(self, asking: Pass) -> Any:  # noqa: ANN401
        """The next batch of a pass; END where it has no more, which the training never sees."""
        leader = self._leader()
        if asking is not leader:
            goes_on = self._goes_on_with if leader is None else self._is_abandoned_for
            if not goes_on(asking):
                return self._feed_other(asking)
            self._move_to(asking)
        self._end_nested()
        assert asking.region is not None
        self.region = asking.region
        self._watch.follow(asking.region)
        self._num_fed += 1
        self._steps_of_others = 0
        asking.steps_seen = self._watch.total
        batch = self._take()
        self._fed_at_s = time.monotonic()
        return batch

    def _take(self) -> Any:  # noqa: ANN401
        with self._lock:
            self._taker = threading.get_ident()
            try:
                return next(self._batches)
            finally:
                self._taker = None

    def give_up(self, gone: Pass) -> bool:
        """Note that a pass was given up; says whether that leaves the training without one."""
        if self._nested_s is not None and gone.asked_at == self._num_fed:
            self._nested_s = (self._nested_s[0], time.monotonic())
            self._nested_steps = (self._nested_steps[0], self._watch.total)
        if id(gone) != self._leader_id:
            return False
        self._leader_id = None
        self._left_at_s = time.monotonic()
        return True

    def is_overrun_by(self, error: BaseException) -> bool:
        """Whether an exception of the step may come of more steps than the training has."""
        steps_per_epoch = self._facts.steps_per_epoch
        from_loader = any(
            frame.f_code.co_filename == stand_in.__file__
            for frame, _ in traceback.walk_tb(error.__traceback__)
        )
        return (
            isinstance(error, (IndexError, KeyError, StopIteration, ValueError))
            and steps_per_epoch is not None
            and self._num_fed > steps_per_epoch
            and not from_loader
        )

    def end(self) -> NoReturn:
        """Answer with what there is, and wait to be ended."""
        self._loop.is_left = True
        if self._taker == threading.get_ident():
            # Its loader is at work. What asked it for a batch answers.
            raise LoopEndedError
        # Another thread that is at it is given no batch more, and answers then.
        with self._lock, contextlib.suppress(LoopEndedError):
            self._batches.throw(LoopEndedError())
        self._trial.end(
            FailureCause.LOOP_ENDED, "the training loop ended after its first optimizer step"
        )

    def _goes_on_with(self, asking: Pass) -> bool:
        """Whether the training, which was left, goes on with another pass.

        That is one over the same loader, or one after whose batch an optimizer took a step.
        """
        if asking.loader is self._loader:
            return True
        moved = asking.num_asked > 0 and self._watch.total > asking.steps_seen
        asking.steps_seen = self._watch.total
        return moved

    def _is_abandoned_for(self, asking: Pass) -> bool:
        """Whether steps follow another pass's batches, where threads of the script hold both.

        Nothing tells that a loop has left what a thread reads ahead for it.
        """
        if self._watch.region is None:
            return False
        if asking.num_asked and self._watch.total > asking.steps_seen:
            self._steps_of_others += 1
        asking.steps_seen = self._watch.total
        return self._steps_of_others >= _ABANDONED_STEPS

    def _move_to(self, asking: Pass) -> None:
        """Go on with another pass. What the script did in between is not counted."""
        if self._left_at_s is not None and self.region.is_for:
            self._loop.pause_since(self._left_at_s)
        else:
            # When the last step ended is not known.
            self._loop.pause_since(self._fed_at_s, lost_step=True)
        self._nested_s = self._left_at_s = None
        self._leader = weakref.ref(asking)
        self._leader_id = id(asking)
        self._loader = asking.loader
        # While the step is timed alone, the workers that would begin another epoch stand still.
        if not self._loop.source.is_held:
            asking.source.continues = True
            self._loop.source = asking.source

    def _feed_other(self, asking: Pass) -> Any:  # noqa: ANN401
        """A batch for a loop that is not the training, or for another loader of its step."""
        follows = asking.asked_at not in (-1, self._num_fed)
        is_nested = not asking.ask_during(self._num_fed)
        if follows and asking.source not in self._loop.followers:
            self._loop.followers.append(asking.source)
        start_s = time.monotonic()
        batch = asking.source.take() if follows else asking.source.take_once()
        now_s = time.monotonic()
        if is_nested:
            before = self._watch.total if self._nested_s is None else self._nested_steps[0]
            self._nested_steps = (before, self._watch.total)
            self._nested_s = (asking.asked_first_s, now_s)
        else:
            self._loop.wait_for_follower(now_s - start_s)
        return batch

    def _end_nested(self) -> None:
        """Leave out an evaluation; a loop in which an optimizer took steps was none."""
        if self._nested_s is not None and self._nested_steps[0] == self._nested_steps[1]:
            began_s, ended_s = self._nested_s
            self._loop.pause_s(ended_s - began_s)
        self._nested_s = None

    def _count(self, batch: Any) -> tuple[int, float]:  # noqa: ANN401
        """Samples and units in a batch of the training."""
        drawn = self._loop.source.num_samples
        if drawn is None:
            self._counter.learn(batch)
            drawn = self._counter.count(batch)
        if self._units is None:
            return drawn, drawn
        found = self._units(batch)
        if found is None or isinstance(found, str):
            self._trial.end(
                FailureCause.CRASHED,
                f"the function given as units to autotune.steps must give a number, not {found!r}",
            )
        return drawn, found

    def _describe(self) -> LoopFacts:
        """What the coordinator should know; ends the trial where it is not worth measuring."""
        source, facts, config = self._loop.source, self._facts, self._trial.config
        fixed = {
            **facts.fixed,
            **set_otherwise(
                matmul_precision=config.matmul_precision, cudnn_benchmark=config.cudnn_benchmark
            ),
        }
        if source.num_samples is None:
            self._counter.learn(source.peek())
            own = self._counter.own_batch_size
            if own is not None and own != config.batch_size:
                fixed["batch_size"] = f"the loader makes batches of {own} samples by itself"
            if not self._counter.knows and self._units is None:
                self._trial.end(
                    FailureCause.NOT_COUNTABLE,
                    "cannot tell how many samples a batch holds: give autotune.steps a function "
                    "that counts them, such as units=samples with "
                    "`def samples(batch): return ...`",
                )
        if config.num_workers and self._starts_no_workers():
            fixed |= dict.fromkeys(
                ("num_workers", "prefetch_factor"), "the loader starts no workers"
            )
        for setting, reason in fixed.items():
            self._check_fixed(setting, reason)
        if repeats_samples(self._loader):
            self._trial.end(
                FailureCause.REPEATED_DATA,
                "the loader's workers deliver the same samples: each reads the whole dataset, so "
                "that an epoch holds every sample once per worker. Have the dataset's __iter__ "
                "read its share by torch.utils.data.get_worker_info()",
                setting="num_workers",
            )
        notes = self._notes
        if source.is_lockstep:
            notes += (_DISPATCHED,)
        return LoopFacts(
            unit=_unit_name(self._units),
            steps_per_epoch=facts.steps_per_epoch,
            samples_per_epoch=facts.samples_per_epoch,
            steps_per_update=self._steps_per_update,
            num_parameters=self._watch.num_parameters(),
            fixed=fixed,
            notes=notes,
            lockstep=source.is_lockstep,
            swappable=is_swappable(self._loader, facts)
            and not self._loop.followers
            and find_place().world_size == 1,
        )

    def _starts_no_workers(self) -> bool:
        """Whether nothing loads beside the training, and the loader does not say that it does."""
        source = self._loop.source
        source.peek()
        declares = getattr(self._loader, "num_workers", 0) == self._trial.config.num_workers
        return not declares and not source.has_workers()

    def _check_fixed(self, setting: str, reason: str) -> None:
        """The script's own value may run as it is; any other would only be called so."""
        config, default = self._trial.config.to_dict(), self._trial.default.to_dict()
        if config[setting] != default[setting]:
            self._trial.end(
                FailureCause.SETTING_IGNORED,
                f"{setting} {config[setting]} has no effect: {reason}",
                setting=setting,
            )


def _kind_of_loop(trial: TrialProcess) -> type[TimedLoop]:
    if trial.link is None:
        return TimedLoop
    # Imported here: most trainings have one process.
    from autotune.instrument.rank_loops import FollowingLoop, LeadingLoop

    return LeadingLoop if trial.leads else FollowingLoop


def _has_own_batches(loader: Any) -> bool:  # noqa: ANN401
    """Whether a DataLoader gives batches that its dataset makes."""
    return is_dataloader(loader) and loader.batch_sampler is None


def _unit_name(units: Any) -> str | None:  # noqa: ANN401
    """A function's name names the unit; a lambda has none worth showing."""
    if units is None:
        return None
    name = getattr(units, "__name__", "")
    return name if name.isidentifier() else "units"
