"""How long a trial is measured: briefly in the search, longer where it decides.

Blocks that something disturbed are kept, and measured again within a bound.
"""

from __future__ import annotations

import dataclasses
import math
import time

from autotune.blocks import BlockMode, BlockRequest, Probes, Sample
from autotune.measurement import Failure, FailureCause, StartMode, fullest_device, summarise
from autotune.optimizer.trial_cost import LONGEST_UPDATE_S, SETTLE_S, SLOW_S
from autotune.study.definition import StudyDefinition
from autotune.study.records import Outcome
from autotune.system.load import QuietKeeper
from autotune.trials.trial import Trial, TrialFailedError

# The first step of all is taken to last as long as so many others.
_FIRST_STEP = 3
# A short trial goes on while its rate is at least this share of the best one so far.
_KEEPS_UP = 0.9
# That is not judged on less than this, nor on less than a block.
_LEAST_VISIT_S = 0.5
# At most so many disturbed blocks of a trial are measured again, for each that was asked for.
MAX_REPEATS = 2
# An answer that takes this many times as long as expected is given up.
_PATIENCE = 20.0
_LEAST_PATIENCE_S = 30.0
# Once the time is up, what has begun may still take so many times as long as expected.
_LATE_PATIENCE = 3.0
_LEAST_LATE_PATIENCE_S = 10.0
# The loader's workers are given so long to come to rest before an epoch is begun.
_REST_S = 2.0
# A loop that ends by itself is run again from its start up to so many times, where a start takes
# hundredths of a second, or where it takes seconds. It has to have so many steps, of which one part
# in so many is warm-up.
_MOST_FORKED, _MOST_FRESH = 40, 1
_SHORTEST_LIFE, _SETTLED_PART = 8, 4
# With workers, blocks are whole epochs where these take no longer than so many ordinary blocks.
_EPOCH_BLOCKS = 6
# Looking at all parameters takes about so long at most.
_CHECK_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a trial may take.

    Attributes:
        step_s: Seconds that a step should take, as far as is known; None if nothing is.
        first_step_deadline_s: Patience with the first steps where nothing is known.
        end_s: Monotonic time after which nothing is measured again.
        expects_finite: Whether parameters that become NaN or infinite are a failure.
        warm_up_s: The longest warm-up so far: what compiles its steps may compile them again for
            other batches.
        gpu_headroom: Share of a GPU's memory that must stay free; None for the baseline, which is
            what it is.
        first_epoch_s: Seconds that may be spent on getting past the first epoch, where later ones
            may differ; 0 where they do not.
    """

    step_s: float | None
    first_step_deadline_s: float
    end_s: float
    expects_finite: bool = False
    first_epoch_s: float = 0.0
    warm_up_s: float = 0.0
    gpu_headroom: float | None = None

    @property
    def left_s(self) -> float:
        """Seconds until the time is up."""
        return self.end_s - time.monotonic()

    @property
    def are_reached(self) -> bool:
        """Whether the time is up."""
        return self.left_s < 0

    def patience_s(self, expected_s: float) -> float:
        """Seconds after which an answer that should take `expected_s` is given up."""
        patience_s = max(_LEAST_PATIENCE_S, _PATIENCE * expected_s)
        return min(
            patience_s, max(self.left_s, _LATE_PATIENCE * expected_s, _LEAST_LATE_PATIENCE_S)
        )


class Run:
    """One trial while it is measured, block by block.

    Args:
        trial: Ready, not yet asked for anything.
        definition: Says how long a block is.
        limits: What the trial may take.
        whole: Whether blocks are whole optimizer steps, unless these are very long.
    """

    def __init__(
        self, trial: Trial, definition: StudyDefinition, limits: Limits, *, whole: bool
    ) -> None:
        self.trial = trial
        self.samples: list[Sample] = []
        self.probes: Probes | None = None
        self._definition = definition
        self._limits = limits
        # Batches arrive in patterns as long as there are workers, since they arrive in order.
        self._period = 1 if whole else max(1, trial.config.num_workers)
        self._steps_per_update = (
            trial.facts.steps_per_update or trial.config.gradient_accumulation_steps
        )
        self._request = BlockRequest(
            min_s=definition.block_s,
            multiple_of=math.lcm(self._steps_per_update, self._period),
            cut_s=LONGEST_UPDATE_S if whole else 2 * definition.block_s,
        )
        # Of a loop that ends by itself, the batches from its start to its end.
        self._life_steps: int | None = None
        self._has_ended = False
        self._num_renewals = 0
        self._step_s = 0.0
        # Whether one step was taken to be enough to settle, and no block has shown whether it was.
        self._is_hasty = limits.step_s is not None and limits.step_s >= SLOW_S
        self._settle(num_steps=1 if self._is_hasty else None)

    @property
    def is_spent(self) -> bool:
        """Whether its loop has ended, and was begun again as often as is sensible."""
        most = _MOST_FORKED if self.trial.mode is StartMode.FORK else _MOST_FRESH
        return self._has_ended and (self._num_renewals >= most or self._limits.are_reached)

    @property
    def block_s(self) -> float:
        """About what a block takes."""
        request = self._request
        block_s = max(request.min_s, request.multiple_of * self._step_s)
        return block_s if request.cut_s is None else min(block_s, request.cut_s + self._step_s)

    @property
    def probes_s(self) -> float:
        """About what timing step and loader takes, each by itself."""
        # Step and loader, and a step after the pause between.
        return 3 * self.block_s

    @property
    def units_per_s(self) -> float:
        """Throughput so far."""
        return summarise(self.samples, self.trial.config).units_per_s

    def measure(self, num_blocks: int = 1, *, min_s: float = 0.0) -> Sample:
        """Blocks without a pause between; the caller decides whether to keep them in `samples`.

        Args:
            num_blocks: How many; fewer where the loop ends, and none where that is for good.
            min_s: Shortest duration of each, where that is more than usual.

        Raises:
            TrialFailedError: The loop ends before there was any.
        """
        request = dataclasses.replace(
            self._request, num_blocks=num_blocks, min_s=max(min_s, self._request.min_s)
        )
        sample = self._ask(request, num_blocks * max(min_s, self.block_s))
        if self._is_hasty and sample.blocks and not self._has_ended:
            self._is_hasty = False
            first = sample.blocks[0]
            if first.num_compiled or first.duration_s < SETTLE_S * first.num_steps:
                self.samples.clear()
                self._settle(num_steps=None)
                if not self.is_spent:
                    return self.measure(num_blocks, min_s=min_s)
        while not sample.blocks and not self.is_spent:
            # The loop ended before there was one.
            sample = self._ask(request, num_blocks * max(min_s, self.block_s))
        if not any(found.blocks for found in (*self.samples, sample)):
            raise self._too_short()
        return sample

    def measure_until(
        self, num_blocks: int, keeper: QuietKeeper, *, least_units_per_s: float = 0.0
    ) -> None:
        """Blocks until so many were undisturbed, or the run is hopeless, or the time is up.

        Args:
            num_blocks: Undisturbed blocks wanted.
            keeper: Waits for a quiet machine after a disturbed one.
            least_units_per_s: A run below this is hopeless.
        """
        judged_from = min(num_blocks, math.ceil(_LEAST_VISIT_S / self.block_s))
        wanted = judged_from if least_units_per_s else num_blocks
        repeats_left = MAX_REPEATS
        num_quiet = 0
        while num_quiet < num_blocks:
            sample = self.measure(wanted - num_quiet)
            self.samples.append(sample)
            num_quiet += sum(not block.interference for block in sample.blocks)
            if self._limits.are_reached or (sample.disturbed and not repeats_left):
                return
            if self.is_spent:
                return
            if num_quiet < wanted:
                # Where the machine does not get quiet, once more, and then no more.
                repeats_left = repeats_left - 1 if keeper.wait() else 0
                continue
            if self.units_per_s < least_units_per_s:
                return
            wanted = num_blocks

    def pass_first_epoch(self) -> bool:
        """Measure until the first epoch has ended; says whether it has within the time given.

        Where it is known to take longer, nothing is measured.
        """
        steps_per_epoch = self.trial.facts.steps_per_epoch or 0
        if steps_per_epoch * self._step_s > self._limits.first_epoch_s:
            return False
        end_s = time.monotonic() + self._limits.first_epoch_s
        while time.monotonic() < end_s and not self.is_spent:
            sample = self.measure()
            self.samples.append(sample)
            if any(block.num_epoch_ends for block in sample.blocks):
                return True
        return False

    def check_finite(self) -> None:
        """Make sure that nothing diverged: what is NaN is fast for nothing.

        Raises:
            TrialFailedError: A parameter is NaN or infinite.
        """
        if not self._limits.expects_finite:
            return
        if self.trial.is_finite(deadline_s=self._limits.patience_s(_CHECK_S)) is False:
            message = (
                "parameters became NaN or infinite, which they do not with the baseline: the "
                "training diverges with these settings"
            )
            raise TrialFailedError(Failure(cause=FailureCause.NOT_FINITE, message=message))

    def check_headroom(self) -> None:
        """Make sure that the GPU's memory is not nearly full: a long training would run out of it.

        Raises:
            TrialFailedError: It is, or has been, so that torch's allocator had to try again.
        """
        device, headroom = fullest_device(self.samples), self._limits.gpu_headroom
        if device is None or headroom is None:
            return
        num_retries = max(m.num_retries for sample in self.samples for m in sample.devices)
        if device.used_share <= 1 - headroom and not num_retries:
            return
        message = (
            f"{100 * device.used_share:.0f} % of the GPU's {device.total_bytes / 2**30:,.1f} GiB "
            f"were taken"
            + (f", and the allocator ran out {num_retries} times" if num_retries else "")
            + f", at {self.units_per_s:,.0f} {self.trial.facts.unit or 'samples'}/s: a training "
            f"must leave {100 * headroom:.0f} % free (--gpu-headroom {headroom:.2g})"
        )
        raise TrialFailedError(Failure(cause=FailureCause.NO_HEADROOM, message=message))

    def probe(self, *, halves: bool = True) -> None:
        """Time the step and the loader, each by itself, and the start of an epoch.

        A loop that ends by itself is too short for that, and ranks that can only go on together
        cannot do one of the two.

        Args:
            halves: Whether step and loader are timed, beside the start of an epoch.
        """
        if self._life_steps is not None or self.trial.facts.lockstep:
            return
        if not halves:
            self.probes = Probes(epoch_start_s=self._epoch_start_s())
            return
        num_workers = max(1, self.trial.config.num_workers)
        compute = dataclasses.replace(self._request, mode=BlockMode.COMPUTE)
        load = dataclasses.replace(self._request, mode=BlockMode.LOAD, multiple_of=num_workers)
        compute_sample = self._ask(compute, self.block_s)
        if self._has_ended:
            return
        load_sample = self._ask(load, self.block_s)
        if self._has_ended:
            return
        copy_s = None
        if fullest_device(self.samples) is not None:
            copy_s = self.trial.copy_s(deadline_s=self._limits.patience_s(self.block_s))
        self.probes = Probes(
            copy_s=copy_s,
            compute_units_per_s=compute_sample.blocks[0].units_per_s,
            load_units_per_s=load_sample.blocks[0].units_per_s,
            epoch_start_s=self._epoch_start_s(),
        )

    def _epoch_start_s(self) -> float | None:
        deadline_s = self._limits.patience_s(_REST_S + self.block_s)
        return self.trial.begin_epoch(limit_s=_REST_S, deadline_s=deadline_s)

    def outcome(self) -> Outcome:
        """What is to be stored."""
        assert self.trial.start_up_s is not None
        return Outcome(
            measurement=summarise(
                self.samples,
                self.trial.config,
                steps_per_epoch=self.trial.facts.steps_per_epoch,
                samples_per_epoch=self.trial.facts.samples_per_epoch,
                steps_per_update=self._steps_per_update,
                probes=self.probes,
            ),
            samples=self.samples,
            start_mode=self.trial.mode,
            start_up_s=self.trial.start_up_s,
            duration_s=self.trial.active_s,
            unit=self.trial.facts.unit,
        )

    def _settle(self, num_steps: int | None) -> None:
        request = dataclasses.replace(
            self._request, num_blocks=0, settle_s=SETTLE_S, settle_steps=num_steps
        )
        limits = self._limits
        patience_s = limits.first_step_deadline_s
        if limits.step_s is not None:
            patience_s = limits.patience_s(longest_settling_s(limits.step_s) + limits.warm_up_s)
        self.samples.append(self._measure(request, patience_s))

    def _ask(self, request: BlockRequest, expected_s: float) -> Sample:
        if self._has_ended:
            self._begin_again()
            # In one go: what is left of the loop is short, and a pause would cost some of it.
            request = dataclasses.replace(
                request,
                settle_s=SETTLE_S,
                settle_steps=max(1, (self._life_steps or 0) // _SETTLED_PART),
            )
        expected_s += SETTLE_S + self._limits.warm_up_s
        return self._measure(request, self._limits.patience_s(expected_s))

    def _measure(self, request: BlockRequest, deadline_s: float) -> Sample:
        sample = self.trial.measure(request, deadline_s=deadline_s)
        self._has_ended = sample.life_steps is not None
        self._life_steps = sample.life_steps or self._life_steps
        settling = sample.settling
        if settling is not None:
            self._step_s = max(settling.step_s, 1e-6)
            self._steps_per_update = settling.steps_per_update or self._steps_per_update
            self._request = self._in_whole_steps(self._steps_per_update)
        return sample

    def _in_whole_steps(self, steps_per_update: int) -> BlockRequest:
        """The request for blocks of whole optimizer steps, or whole epochs where these are short.

        Then each block has as many of their partial last batches, and of their ends, as belong to
        it. With workers this matters for longer epochs, too: at an epoch's begin all workers start
        at once, so that the loop waits for a batch and gets several, and blocks that are always
        taken from the same part of an epoch would see only the one or the other.
        """
        definition = self._definition
        longest_s = definition.block_s
        if self.trial.config.num_workers:
            longest_s *= _EPOCH_BLOCKS
        steps_per_epoch = self.trial.facts.steps_per_epoch
        if steps_per_epoch is not None:
            epochs = math.lcm(steps_per_update, steps_per_epoch)
            if epochs * self._step_s <= longest_s:
                return dataclasses.replace(self._request, multiple_of=epochs, cut_s=None)
        steps = math.lcm(steps_per_update, self._period)
        return dataclasses.replace(self._request, multiple_of=steps)

    def _begin_again(self) -> None:
        """Have the loop run once more from its start, in another process.

        Raises:
            TrialFailedError: It is too short to be measured.
        """
        if (self._life_steps or 0) < _SHORTEST_LIFE or self.is_spent:
            raise self._too_short()
        self._num_renewals += 1
        self.trial.renew()

    def _too_short(self) -> TrialFailedError:
        return TrialFailedError(
            Failure(
                cause=FailureCause.LOOP_ENDED,
                message=f"the training loop ended after {self._life_steps} steps: too few to be "
                "measured; give the command more steps",
            )
        )


def run_short(
    trial: Trial,
    definition: StudyDefinition,
    *,
    num_blocks: int | None,
    incumbent: float,
    limits: Limits,
    keeper: QuietKeeper,
) -> Outcome:
    """Measure briefly: some blocks, or fewer where it does not keep up with the incumbent.

    Args:
        trial: Ready, not yet asked for anything.
        definition: Says how long a block is.
        num_blocks: How many at most, disturbed ones apart; None for as many as the study says, or
            fewer long ones that take as long.
        incumbent: Units per second of the best configuration so far, 0 for none.
        limits: What the trial may take.
        keeper: Waits for a quiet machine.
    """
    run = Run(trial, definition, limits, whole=False)
    run.pass_first_epoch()
    if num_blocks is None:
        num_blocks = math.ceil(definition.max_blocks * definition.block_s / run.block_s)
    run.measure_until(num_blocks, keeper, least_units_per_s=_KEEPS_UP * incumbent)
    run.check_headroom()
    run.check_finite()
    return run.outcome()


def run_through(
    trial: Trial,
    definition: StudyDefinition,
    *,
    limits: Limits,
    keeper: QuietKeeper,
) -> Outcome:
    """Measure longer, in whole optimizer steps unless these are very long, as training runs.

    Args:
        trial: Ready, not yet asked for anything.
        definition: Says how long to measure.
        limits: What the trial may take.
        keeper: Waits for a quiet machine.
    """
    run = Run(trial, definition, limits, whole=True)
    num_blocks = math.ceil(definition.confirm_s / run.block_s)
    run.measure_until(num_blocks, keeper)
    if run.pass_first_epoch():
        run.measure_until(math.ceil(num_blocks / 2), keeper)
    return run.outcome()


def longest_settling_s(step_s: float) -> float:
    """What settling takes at most with steps that take so long, or little more."""
    return SETTLE_S + (_FIRST_STEP + 1) * step_s
