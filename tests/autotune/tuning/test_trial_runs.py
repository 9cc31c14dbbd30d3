"""How long a trial is measured, with scripted ones."""

import dataclasses
import time

import pytest

from autotune.blocks import BlockMode, LoopFacts, Sample
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode
from autotune.study.definition import StudyDefinition
from autotune.trials.trial import TrialFailedError
from autotune.tuning.trial_runs import MAX_REPEATS, Limits, Run, run_short, run_through

from ..made_up import SETTLING, block, block_at

CONFIG = ThroughputConfig(batch_size=4)
# Half a second is two blocks; a short trial has up to six, and a confirming run eight.
DEFINITION = StudyDefinition(name="x", command=("x",), block_s=0.25, max_blocks=6, confirm_s=2.0)


class FakeKeeper:
    def __init__(self, *, quiet=True):
        self.num_waits = 0
        self._quiet = quiet

    def wait(self):
        self.num_waits += 1
        return self._quiet


class FakeTrial:
    """A trial of 100 units/s, of which some blocks are disturbed; keeps what it was asked."""

    mode = StartMode.FORK
    facts = LoopFacts()
    start_up_s = 0.5
    active_s = 2.0

    def __init__(self, config=CONFIG, *, disturbed=(), step_s=0.01):
        self.config = config
        self.requests = []
        self.num_blocks = 0
        self._disturbed = disturbed
        self._settling = dataclasses.replace(SETTLING, step_s=step_s)

    def measure(self, request, *, deadline_s):
        assert deadline_s > 0
        self.requests.append(request)
        settling = self._settling if request.settle_s else None
        return Sample(
            blocks=tuple(self._block() for _ in range(request.num_blocks)), settling=settling
        )

    def begin_epoch(self, *, limit_s, deadline_s):
        assert 0 < limit_s < deadline_s
        return 0.25

    def _block(self):
        self.num_blocks += 1
        stolen_s = 0.5 if self.num_blocks in self._disturbed else 0.0
        return dataclasses.replace(block_at(100.0), stolen_s=stolen_s)


class EndingTrial(FakeTrial):
    """One whose loop ends after a few blocks, each time that it is begun."""

    def __init__(self, life, mode=StartMode.FORK):
        super().__init__()
        self.mode, self.life, self.left, self.num_renewals = mode, life, life, 0

    def measure(self, request, *, deadline_s):
        found = super().measure(request, deadline_s=deadline_s)
        blocks = found.blocks[: self.left]
        self.left -= len(blocks)
        ended = len(blocks) < request.num_blocks
        return dataclasses.replace(found, blocks=blocks, life_steps=20 if ended else None)

    def renew(self):
        self.num_renewals += 1
        self.left = self.life

    def is_finite(self, *, deadline_s):
        return True


def limits(left_s=1000.0, step_s=None):
    return Limits(step_s=step_s, first_step_deadline_s=30.0, end_s=time.monotonic() + left_s)


def short_run_of(trial, *, incumbent=0.0, keeper=None, left_s=1000.0):
    return run_short(
        trial,
        DEFINITION,
        num_blocks=DEFINITION.max_blocks,
        incumbent=incumbent,
        limits=limits(left_s),
        keeper=keeper or FakeKeeper(),
    )


def test_the_first_configuration_has_all_its_blocks():
    trial = FakeTrial()
    outcome = short_run_of(trial)
    assert outcome.measurement.num_blocks == 6
    assert outcome.measurement.units_per_s == pytest.approx(100.0)
    assert outcome.measurement.warm_up_s == SETTLING.duration_s
    assert trial.requests[0].settle_s > 0
    assert not any(request.settle_s for request in trial.requests[1:])


class SlowTrial(FakeTrial):
    """A step is a block, and takes that many seconds."""

    def __init__(self, took_s, *, num_compiled=0):
        super().__init__(step_s=took_s)
        self._took_s, self._num_compiled = took_s, num_compiled

    def _block(self):
        self.num_blocks += 1
        num_compiled = self._num_compiled if self.num_blocks == 1 else 0
        return block(num_steps=1, duration_s=self._took_s, num_compiled=num_compiled)

    @property
    def num_settling(self):
        return [request.settle_steps for request in self.requests if request.settle_s]


def test_of_a_slow_loop_one_step_is_enough_to_settle():
    trial = SlowTrial(5.0)
    outcome = run_short(
        trial,
        DEFINITION,
        num_blocks=None,
        incumbent=0.0,
        limits=limits(step_s=5.0),
        keeper=FakeKeeper(),
    )
    assert trial.num_settling == [1]
    # A block takes as long as all of a short trial.
    assert outcome.measurement.num_blocks == 1
    assert outcome.measurement.seconds_per_step == pytest.approx(5.0)


@pytest.mark.parametrize(("took_s", "num_compiled"), [(0.25, 0), (5.0, 1)])
def test_where_a_loop_is_not_slow_after_all_it_settles_as_others_do(took_s, num_compiled):
    trial = SlowTrial(took_s, num_compiled=num_compiled)
    outcome = run_short(
        trial,
        DEFINITION,
        num_blocks=1,
        incumbent=0.0,
        limits=limits(step_s=5.0),
        keeper=FakeKeeper(),
    )
    assert trial.num_settling == [1, None]
    # What was measured before does not count.
    assert (outcome.measurement.num_blocks, trial.num_blocks) == (1, 2)


def test_one_that_keeps_up_has_all_its_blocks_and_one_that_does_not_has_few():
    assert short_run_of(FakeTrial(), incumbent=105.0).measurement.num_blocks == 6
    assert short_run_of(FakeTrial(), incumbent=200.0).measurement.num_blocks == 2


@pytest.mark.parametrize(
    ("steps_per_epoch", "num_workers", "multiple"),
    [
        (None, 0, 4),
        (3, 0, 12),
        (3, 2, 12),
        (6, 0, 12),
        (9, 0, 4),
        (100, 0, 4),
        # With workers, epochs of up to a second and a half.
        (7, 3, 28),
        (100, 3, 100),
        (101, 3, 12),
    ],
)
def test_blocks_are_whole_updates_and_where_these_are_short_whole_epochs(
    steps_per_epoch, num_workers, multiple
):
    # A block takes 25 steps or more.
    trial = FakeTrial(ThroughputConfig(batch_size=4, num_workers=num_workers), step_s=0.01)
    trial.facts = LoopFacts(steps_per_epoch=steps_per_epoch, steps_per_update=4)
    short_run_of(trial)
    assert {request.multiple_of for request in trial.requests[1:]} == {multiple}


def test_disturbed_blocks_are_measured_again_and_kept_for_the_record():
    keeper = FakeKeeper()
    outcome = short_run_of(FakeTrial(disturbed=(2, 3)), keeper=keeper)
    assert keeper.num_waits == 1
    assert outcome.measurement.num_blocks == 8
    assert outcome.measurement.num_disturbed == 2


def test_a_trial_that_is_always_disturbed_ends_within_the_bound():
    keeper = FakeKeeper()
    outcome = short_run_of(FakeTrial(disturbed=range(1000)), keeper=keeper)
    assert keeper.num_waits == MAX_REPEATS
    assert outcome.measurement.num_disturbed == 6 * (MAX_REPEATS + 1)


def test_a_machine_that_does_not_get_quiet_is_tried_once_more():
    keeper = FakeKeeper(quiet=False)
    outcome = short_run_of(FakeTrial(disturbed=range(1000)), keeper=keeper)
    assert keeper.num_waits == 1
    assert outcome.measurement.num_disturbed == 6 * 2


def test_nothing_is_repeated_when_the_time_is_up():
    keeper = FakeKeeper()
    outcome = short_run_of(FakeTrial(disturbed=(1,)), keeper=keeper, left_s=-1.0)
    assert keeper.num_waits == 0
    assert outcome.measurement.num_blocks == 6


def test_blocks_of_a_visit_are_multiples_of_workers_and_are_cut():
    config = ThroughputConfig(batch_size=4, num_workers=3, gradient_accumulation_steps=2)
    trial = FakeTrial(config)
    short_run_of(trial)
    request = trial.requests[-1]
    assert (request.multiple_of, request.min_s, request.cut_s) == (6, 0.25, 0.5)


def test_a_confirming_run_is_of_whole_optimizer_steps():
    config = ThroughputConfig(batch_size=4, num_workers=3, gradient_accumulation_steps=2)
    trial = FakeTrial(config)
    outcome = run_through(trial, DEFINITION, limits=limits(), keeper=FakeKeeper())
    request = next(r for r in trial.requests if r.num_blocks and r.mode is BlockMode.TRAIN)
    assert (request.multiple_of, request.cut_s) == (2, 30.0)
    assert outcome.measurement.num_blocks == 8


def test_slow_optimizer_steps_make_blocks_longer_and_fewer():
    config = ThroughputConfig(batch_size=4, gradient_accumulation_steps=8)
    trial = FakeTrial(config, step_s=0.1)
    outcome = run_through(trial, DEFINITION, limits=limits(), keeper=FakeKeeper())
    # 0.8 s each, for 2 s.
    assert outcome.measurement.num_blocks == 3
    assert outcome.measurement.compute_units_per_s is None


def test_patience_grows_with_what_is_expected_and_ends_with_the_budget():
    plenty = limits()
    assert plenty.patience_s(0.1) == 30.0
    assert plenty.patience_s(10.0) == 200.0
    late = limits(left_s=-5.0)
    assert late.are_reached
    assert late.patience_s(0.1) == 10.0
    assert late.patience_s(10.0) == 30.0
    assert not plenty.are_reached


def test_a_loop_that_ends_is_begun_again_until_it_is_measured():
    trial = EndingTrial(life=2)
    assert short_run_of(trial).measurement.num_blocks == 6
    assert trial.num_renewals == 2
    # What is left of a loop is measured in one go with its warm-up.
    again = [request for request in trial.requests[1:] if request.settle_s]
    assert [request.settle_steps for request in again] == [5, 5]


def test_a_loop_that_takes_seconds_to_start_is_begun_again_once():
    trial = EndingTrial(life=2, mode=StartMode.FRESH)
    found = run_through(trial, DEFINITION, limits=limits(), keeper=FakeKeeper()).measurement
    assert trial.num_renewals == 1
    assert found.num_blocks == 4


def test_a_loop_that_ends_before_a_block_cannot_be_measured():
    with pytest.raises(TrialFailedError, match="ended after 20 steps"):
        short_run_of(EndingTrial(life=0))


def test_a_loop_that_ends_while_its_halves_are_timed_has_no_probes():
    run = Run(EndingTrial(life=3), DEFINITION, limits(), whole=True)
    run.samples.append(run.measure(3))
    run.probe()
    assert run.probes is None
