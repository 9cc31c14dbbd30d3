"""Rounds of the confirmation with scripted trials."""

import dataclasses
import math
import random
import time

import pytest

from autotune.blocks import BlockMode, LoopFacts, Sample
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.study.definition import StudyDefinition
from autotune.study.records import Outcome
from autotune.trials.trial import TrialFailedError
from autotune.tuning.rounds import RoundPlan, measure_round
from autotune.tuning.trial_runs import MAX_REPEATS, Limits

from ..made_up import SETTLING, block

CONFIGS = [ThroughputConfig(batch_size=size) for size in (2, 4, 8)]
# Four turns of a block of 1 s.
DEFINITION = StudyDefinition(name="x", command=("x",), block_s=1.0, confirm_s=4.0)
FAILURE = Failure(cause=FailureCause.KILLED, message="x")


class FakeKeeper:
    """Says whether the machine is quiet, and counts how often it was asked."""

    def __init__(self, quiet=True):
        self.num_waits = 0
        self._quiet = quiet

    def wait(self):
        self.num_waits += 1
        return self._quiet


class Stage:
    """Starts scripted trials, and writes down what happens to them.

    Args:
        disturbed: For each configuration, the numbers of its blocks that something disturbs.
        fails_at: For each configuration, the number of the block at which it fails; 0 to settle.
        step_s: What a step is said to take.
    """

    def __init__(self, *, disturbed=None, fails_at=None, step_s=SETTLING.step_s):
        self.settling = dataclasses.replace(SETTLING, step_s=step_s)
        self.events = []
        self.block_s = {}
        self.open = set()
        self.most_open = 0
        self.disturbed = disturbed or {}
        self.fails_at = fails_at or {}

    def start(self, config):
        if self.fails_at.get(config) == "start":
            raise TrialFailedError(FAILURE)
        return FakeTrial(self, config)

    def turns(self):
        """The configurations in the order in which their blocks were measured."""
        return [config for what, config in self.events if what == "block"]


class FakeTrial:
    """A trial that computes for 0.5 s a step and settles at once."""

    mode = StartMode.FRESH
    facts = LoopFacts()
    start_up_s = 0.5
    active_s = 2.0

    def __init__(self, stage, config):
        self.config = config
        self._stage = stage
        self._num_blocks = 0

    def __enter__(self):
        self._stage.open.add(self.config)
        self._stage.most_open = max(self._stage.most_open, len(self._stage.open))
        self._stage.events.append(("start", self.config))
        return self

    def __exit__(self, *_):
        self._stage.open.remove(self.config)
        self._stage.events.append(("end", self.config))

    def measure(self, request, *, deadline_s):
        assert deadline_s > 0
        if request.settle_s:
            self._fail_at(0)
            return Sample(blocks=(), settling=self._stage.settling)
        if request.mode is not BlockMode.TRAIN:
            self._stage.events.append((request.mode.value, self.config))
            self._fail_at(request.mode)
            return Sample(blocks=(block(),))
        self._num_blocks += 1
        self._stage.block_s.setdefault(self.config, set()).add(request.min_s)
        self._stage.events.append(("block", self.config))
        self._fail_at(self._num_blocks)
        disturbed = self._num_blocks in self._stage.disturbed.get(self.config, ())
        # The number of the block can be told from its units.
        return Sample(
            blocks=(block(num_units=self._num_blocks, stolen_s=0.5 if disturbed else 0.0),)
        )

    def begin_epoch(self, *, limit_s, deadline_s):
        assert 0 < limit_s < deadline_s
        return 0.25

    def _fail_at(self, point):
        if self._stage.fails_at.get(self.config) == point:
            raise TrialFailedError(FAILURE)


def run_round(
    stage,
    *,
    side_by_side=True,
    probed=True,
    probed_before=frozenset(),
    keeper=None,
    left_s=1000.0,
    seed=0,
):
    end_s = time.monotonic() + left_s
    plan = RoundPlan(
        definition=DEFINITION,
        limits_of=lambda _: Limits(step_s=0.1, first_step_deadline_s=30.0, end_s=end_s),
        keeper=keeper or FakeKeeper(),
        side_by_side=side_by_side,
        probed=probed,
        probed_before=probed_before,
    )
    return measure_round(CONFIGS, stage.start, plan, random.Random(seed))


def blocks_of(outcome):
    """Numbers of the blocks that were kept."""
    return [int(b.num_units) for sample in outcome.samples for b in sample.blocks]


def test_turns_are_interleaved_in_changing_order():
    stage = Stage()
    found = run_round(stage)
    turns = [tuple(stage.turns()[start : start + 3]) for start in range(0, 12, 3)]
    assert len(stage.turns()) == 12
    assert all(set(turn) == set(CONFIGS) for turn in turns)
    assert len(set(turns)) > 1
    assert set(found) == set(CONFIGS)
    assert all(blocks_of(outcome) == [1, 2, 3, 4] for outcome in found.values())
    assert stage.most_open == 3
    assert not stage.open


def test_all_have_started_before_any_is_measured_and_are_probed_before_any_ends():
    stage = Stage()
    run_round(stage)
    kinds = [what for what, _ in stage.events]
    assert kinds[:3] == ["start"] * 3
    assert kinds[-3:] == ["end"] * 3
    assert sorted(kinds[15:-3]) == ["compute"] * 3 + ["load"] * 3


def test_what_probing_found_is_in_the_outcome():
    for outcome in run_round(Stage()).values():
        assert outcome.measurement.compute_units_per_s == pytest.approx(4000.0)
        assert outcome.measurement.load_units_per_s == pytest.approx(4000.0)
        assert (outcome.start_up_s, outcome.start_mode) == (0.5, StartMode.FRESH)


def test_orders_differ_from_round_to_round_and_are_the_same_for_a_seed():
    stages = [Stage(), Stage(), Stage()]
    for stage, seed in zip(stages, (1, 1, 2), strict=True):
        run_round(stage, seed=seed)
    assert stages[0].events == stages[1].events != stages[2].events


def test_a_disturbed_turn_is_repeated_by_all_and_dropped_for_the_undisturbed():
    stage = Stage(disturbed={CONFIGS[1]: (2,)})
    keeper = FakeKeeper()
    found = run_round(stage, keeper=keeper)
    assert len(stage.turns()) == 15
    assert keeper.num_waits == 1
    assert blocks_of(found[CONFIGS[0]]) == blocks_of(found[CONFIGS[2]]) == [1, 3, 4, 5]
    # The disturbed block itself is kept for the record, and does not count.
    assert blocks_of(found[CONFIGS[1]]) == [1, 2, 3, 4, 5]
    assert found[CONFIGS[1]].measurement.num_disturbed == 1
    assert found[CONFIGS[1]].measurement.num_blocks == 5
    assert found[CONFIGS[1]].measurement.num_steps == found[CONFIGS[0]].measurement.num_steps
    assert found[CONFIGS[0]].measurement.num_disturbed == 0


def test_turns_that_are_always_disturbed_are_repeated_within_the_bound():
    stage = Stage(disturbed={CONFIGS[1]: range(1000)})
    keeper = FakeKeeper()
    found = run_round(stage, keeper=keeper)
    repeats = MAX_REPEATS * 4
    assert keeper.num_waits == repeats
    assert stage.turns().count(CONFIGS[1]) == repeats + 4
    # In the end there are as many turns as were asked for, disturbed ones at that.
    assert blocks_of(found[CONFIGS[0]]) == list(range(repeats + 1, repeats + 5))
    assert found[CONFIGS[1]].measurement.num_disturbed == repeats + 4


def test_turns_are_not_repeated_where_the_machine_does_not_get_quiet():
    stage = Stage(disturbed={CONFIGS[1]: range(1000)})
    keeper = FakeKeeper(quiet=False)
    found = run_round(stage, keeper=keeper)
    assert keeper.num_waits == 1
    assert stage.turns().count(CONFIGS[1]) == 1 + 4
    assert blocks_of(found[CONFIGS[0]]) == [2, 3, 4, 5]


@pytest.mark.parametrize("point", ["start", 0, 1, 3])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_a_trial_that_fails_is_out_and_the_others_go_on(point, side_by_side):
    stage = Stage(fails_at={CONFIGS[0]: point})
    found = run_round(stage, side_by_side=side_by_side)
    assert found[CONFIGS[0]] == FAILURE
    for config in CONFIGS[1:]:
        assert isinstance(found[config], Outcome)
        assert blocks_of(found[config]) == [1, 2, 3, 4]
    assert not stage.open


@pytest.mark.parametrize("point", [BlockMode.COMPUTE, BlockMode.LOAD])
def test_what_was_measured_stands_where_a_loop_does_not_bear_to_be_probed(point):
    stage = Stage(fails_at={CONFIGS[0]: point})
    found = run_round(stage)
    for config in CONFIGS:
        assert blocks_of(found[config]) == [1, 2, 3, 4]
        probed = found[config].measurement.compute_units_per_s is not None
        assert probed == (config != CONFIGS[0])
    assert not stage.open


def test_nothing_is_probed_where_that_is_not_wanted():
    stage = Stage()
    found = run_round(stage, probed=False)
    assert {what for what, _ in stage.events} == {"start", "block", "end"}
    assert all(outcome.measurement.load_units_per_s is None for outcome in found.values())


@pytest.mark.parametrize(("step_s", "num_probed"), [(0.1, 3), (20.0, 2)])
def test_halves_that_take_long_are_timed_once(step_s, num_probed):
    stage = Stage(step_s=step_s)
    found = run_round(stage, probed_before={CONFIGS[0]})
    assert sorted(what for what, _ in stage.events if what in ("compute", "load")) == (
        ["compute"] * num_probed + ["load"] * num_probed
    )
    is_probed = found[CONFIGS[0]].measurement.compute_units_per_s is not None
    assert is_probed == (num_probed == 3)
    # What the start of an epoch takes beyond a step is part of the rate in every round.
    assert {outcome.measurement.epoch_end_s for outcome in found.values()} == {0.225}


def test_a_round_in_which_all_fail_has_no_outcome():
    found = run_round(Stage(fails_at=dict.fromkeys(CONFIGS, 0)))
    assert found == dict.fromkeys(CONFIGS, FAILURE)


def test_a_disturbed_turn_before_a_failure_repeats_for_those_that_are_left():
    stage = Stage(disturbed={CONFIGS[1]: (2,)}, fails_at={CONFIGS[0]: 2})
    found = run_round(stage)
    assert found[CONFIGS[0]] == FAILURE
    assert blocks_of(found[CONFIGS[2]]) == [1, 3, 4, 5]


def test_one_after_another_never_has_two_trials_open():
    stage = Stage()
    found = run_round(stage, side_by_side=False)
    assert stage.most_open == 1
    assert set(found) == set(CONFIGS)
    order = [config for what, config in stage.events if what == "start"]
    assert stage.turns() == [config for config in order for _ in range(4)]


def test_when_the_time_is_up_a_turn_is_finished_and_no_other_begun():
    stage = Stage(disturbed={CONFIGS[1]: range(1000)})
    found = run_round(stage, left_s=-1.0)
    assert len(stage.turns()) == 3
    assert all(blocks_of(outcome) == [1] for outcome in found.values())


@pytest.mark.parametrize(("accumulation", "num_turns", "block_s"), [(30, 2, 3.0), (400, 1, 4.0)])
def test_the_longest_block_decides_how_many_turns_there_are_and_how_long_all_blocks_are(
    accumulation, num_turns, block_s
):
    # Blocks are whole optimizer steps, at 0.1 s a step.
    slow = ThroughputConfig(batch_size=2, gradient_accumulation_steps=accumulation)
    stage = Stage()
    plan = RoundPlan(
        definition=DEFINITION,
        limits_of=lambda _: Limits(step_s=0.1, first_step_deadline_s=30.0, end_s=math.inf),
        keeper=FakeKeeper(),
        side_by_side=True,
    )
    measure_round([slow, CONFIGS[1]], stage.start, plan, random.Random(0))
    assert sorted(stage.turns(), key=str) == sorted([slow, CONFIGS[1]] * num_turns, key=str)
    assert stage.block_s == {slow: {block_s}, CONFIGS[1]: {block_s}}
