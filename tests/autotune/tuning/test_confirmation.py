"""Which candidates may be open at once, and what a round that hangs leads to."""

import dataclasses
import itertools
import types

import pytest

from autotune.analysis.comparison import complete_rounds
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.study.definition import StudyDefinition
from autotune.study.records import Phase
from autotune.tuning import confirmation as confirmation
from autotune.tuning.confirmation import Confirmation, confirmed_together

from .. import made_up

BASELINE, OTHER, THIRD = (ThroughputConfig(batch_size=size) for size in (1, 2, 3))
DEFINITION = StudyDefinition(name="x", command=("x",), confirm_rounds=3)


class FakeRecorder:
    """Rounds of 10 s each; in those that are side by side, some configurations fail.

    They do so every time, or as often as is said.
    """

    def __init__(
        self,
        *,
        left_s=1000.0,
        fails=(),
        cause=FailureCause.TIMED_OUT,
        times=99,
        ratios=(1.0,),
        faster=(),
    ):
        self._faster = faster
        self._times_left = times
        self._numbers = itertools.count()
        self.definition = DEFINITION
        self.left_s = left_s
        self.rounds = []
        self.ruled_out = ()
        self.notes = []
        self.observer = types.SimpleNamespace(note=self.notes.append)
        self._fails = fails
        self._ratios = itertools.cycle(ratios)
        self._failure = Failure(cause=cause, message="x")

    def run_round(self, configs, *, number, side_by_side, shuffle):
        self.left_s -= 10.0
        self.rounds.append((tuple(configs), side_by_side))
        found = []
        ratio = next(self._ratios)
        some_fail = side_by_side and self._times_left > 0
        self._times_left -= 1
        for config in configs:
            failed = {"measurement": None, "failure": self._failure}
            found.append(
                made_up.record(
                    made_up.block_at(
                        100.0 * (1.0 if config == BASELINE else ratio + (config in self._faster))
                    ),
                    config=config,
                    phase=Phase.CONFIRM,
                    round_number=number,
                    number=next(self._numbers),
                    **failed if some_fail and config in self._fails else {},
                )
            )
        return found

    def rules_out(self, config):
        """What failed so often that it is ruled out, too."""
        return config in self.ruled_out


def confirm(executor, configs=(BASELINE, OTHER, THIRD), substitutes=()):
    return Confirmation(executor).confirm(
        configs,
        side_by_side=True,
        substitutes=lambda failed: [config for config in substitutes if config not in failed][:1],
        show=lambda: None,
    )


def confirm_with_gains(executor, gains):
    return Confirmation(executor).confirm(
        (BASELINE, OTHER),
        side_by_side=True,
        substitutes=lambda _: (),
        show=lambda: None,
        measured_gain=lambda tried: [config for config in gains if config not in tried][:1],
    )


def test_where_the_candidate_is_no_gain_what_was_measured_as_one_is_confirmed():
    executor = FakeRecorder(faster=(THIRD,))
    confirmed = confirm_with_gains(executor, (OTHER, THIRD))
    assert executor.rounds == [((BASELINE, OTHER), True)] * 3 + [((BASELINE, THIRD), True)] * 3
    runs = confirmation.complete_rounds(confirmed, BASELINE)
    assert {config: [run.round_number for run in found] for config, found in runs.items()} == {
        config: [4, 5, 6] for config in (BASELINE, THIRD)
    }
    assert "no gain: what the search measured as one" in executor.notes[0]


def test_a_gain_that_is_confirmed_is_enough():
    executor = FakeRecorder(faster=(OTHER,))
    confirm_with_gains(executor, (OTHER, THIRD))
    assert executor.rounds == [((BASELINE, OTHER), True)] * 3


def test_without_time_for_another_candidate_the_first_is_the_answer():
    executor = FakeRecorder(left_s=35.0)
    runs = confirmation.complete_rounds(confirm_with_gains(executor, (OTHER, THIRD)), BASELINE)
    assert len(executor.rounds) == 3
    assert set(runs) == {BASELINE, OTHER}


def test_there_are_as_many_rounds_as_asked_for():
    executor = FakeRecorder()
    assert len(confirm(executor)) == 9
    assert executor.rounds == [((BASELINE, OTHER, THIRD), True)] * 3


def test_rounds_that_leave_it_open_whether_there_is_a_gain_are_followed_by_as_many_again():
    executor = FakeRecorder(ratios=(1.3, 0.95, 1.1))
    assert len(confirm(executor)) == 18


@pytest.mark.parametrize("ratios", [(1.5, 1.51, 1.49), (0.9, 1.0, 0.8), (1.01, 1.0)])
def test_rounds_that_tell_are_enough(ratios):
    assert len(confirm(FakeRecorder(ratios=ratios))) == 9


def test_rounds_end_when_another_would_not_fit():
    executor = FakeRecorder(left_s=25.0)
    assert len(confirm(executor)) == 6


def test_a_finalist_that_crashed_takes_no_part_in_further_rounds():
    executor = FakeRecorder(fails=(OTHER,), cause=FailureCause.CRASHED)
    confirm(executor)
    assert executor.rounds[1:] == [((BASELINE, THIRD), True)] * 2


def test_where_all_finalists_fail_the_next_best_is_confirmed_for_as_many_rounds():
    executor = FakeRecorder(fails=(OTHER,), cause=FailureCause.CRASHED)
    confirmed = confirm(executor, (BASELINE, OTHER), substitutes=(OTHER, THIRD))
    assert executor.rounds == [((BASELINE, OTHER), True)] + [((BASELINE, THIRD), True)] * 3
    runs = confirmation.complete_rounds(confirmed, BASELINE)
    assert [run.round_number for run in runs[BASELINE]] == [2, 3, 4]
    assert [run.round_number for run in runs[THIRD]] == [2, 3, 4]


def test_a_candidate_that_is_ruled_out_meanwhile_is_not_run_again():
    executor = FakeRecorder()
    executor.ruled_out = (OTHER,)
    confirm(executor)
    assert executor.rounds[1:] == [((BASELINE, THIRD), True)] * 2


def test_where_the_time_is_up_what_takes_the_place_of_a_failed_candidate_has_its_round():
    executor = FakeRecorder(left_s=12.0, fails=(OTHER,), cause=FailureCause.CRASHED)
    runs = confirmation.complete_rounds(
        confirm(executor, (BASELINE, OTHER), (OTHER, THIRD)), BASELINE
    )
    assert executor.rounds == [((BASELINE, OTHER), True), ((BASELINE, THIRD), True)]
    assert set(runs) == {BASELINE, THIRD}


def test_there_is_one_such_round_and_no_more():
    executor = FakeRecorder(left_s=12.0, fails=(OTHER, THIRD), cause=FailureCause.CRASHED)
    last = ThroughputConfig(batch_size=4)
    runs = confirmation.complete_rounds(
        confirm(executor, (BASELINE, OTHER), (OTHER, THIRD, last)), BASELINE
    )
    assert len(executor.rounds) == 2
    assert set(runs) == {BASELINE}


def test_rounds_end_when_the_caller_has_seen_enough():
    executor = FakeRecorder()
    Confirmation(executor).confirm(
        (BASELINE, OTHER),
        side_by_side=True,
        substitutes=lambda failed: [],
        show=lambda: None,
        stop=lambda confirmed: len(confirmed) == 4,
    )
    assert len(executor.rounds) == 2


@pytest.mark.parametrize("fails", [(OTHER,), (BASELINE,), (BASELINE, THIRD)])
def test_a_round_in_which_somebody_killed_one_is_repeated_and_nobody_is_out(fails):
    executor = FakeRecorder(fails=fails, cause=FailureCause.KILLED, times=1)
    confirmed = confirm(executor)
    assert executor.rounds == [((BASELINE, OTHER, THIRD), True)] * 4
    runs = confirmation.complete_rounds(confirmed, BASELINE)
    assert {config: [run.round_number for run in found] for config, found in runs.items()} == {
        config: [2, 3, 4] for config in (BASELINE, OTHER, THIRD)
    }


def test_where_there_was_time_for_one_round_and_somebody_cut_it_short_there_is_another():
    executor = FakeRecorder(left_s=12.0, fails=(OTHER,), cause=FailureCause.KILLED, times=1)
    runs = confirmation.complete_rounds(confirm(executor), BASELINE)
    assert len(executor.rounds) == 2
    assert set(runs) == {BASELINE, OTHER, THIRD}


def test_one_that_is_killed_again_is_out():
    executor = FakeRecorder(fails=(OTHER,), cause=FailureCause.KILLED)
    runs = confirmation.complete_rounds(confirm(executor), BASELINE)
    assert executor.rounds == [
        *[((BASELINE, OTHER, THIRD), True)] * 2,
        *[((BASELINE, THIRD), True)] * 2,
    ]
    assert list(runs) == [BASELINE, THIRD]


def test_where_nothing_else_is_left_the_baseline_is_what_remains():
    executor = FakeRecorder(fails=(OTHER,), cause=FailureCause.CRASHED)
    confirmed = confirm(executor, (BASELINE, OTHER), substitutes=(OTHER,))
    assert len(executor.rounds) == 3
    assert list(confirmation.complete_rounds(confirmed, BASELINE)) == [BASELINE]


@pytest.mark.parametrize("fails", [(OTHER,), (BASELINE,)])
def test_where_one_hangs_beside_others_that_round_does_not_count_and_they_run_alone(fails):
    executor = FakeRecorder(fails=fails)
    confirmed = confirm(executor)
    assert executor.rounds == [
        ((BASELINE, OTHER, THIRD), True),
        *[((BASELINE, OTHER, THIRD), False)] * 3,
    ]
    assert {record.round_number for record in confirmed} == {2, 3, 4}
    assert all(record.failure is None for record in confirmed)
    assert len(executor.notes) == 1


@pytest.fixture
def fit_together(monkeypatch):
    """Whether two trials that hold some memory fit into what is left."""

    def ask(*, held=1, shared=0, left=1000, shared_left=None, device=None, gpu_headroom=0.1):
        monkeypatch.setattr(confirmation, "memory_left_bytes", lambda: left)
        monkeypatch.setattr(confirmation, "shared_memory_left_bytes", lambda: shared_left)
        samples = made_up.sample(
            made_up.block(),
            memory_bytes=held,
            shared_memory_bytes=shared,
            devices=() if device is None else (made_up.device(used_bytes=device),),
        )
        records = [
            made_up.record_of([samples], config=config) for config in (BASELINE, OTHER, THIRD)
        ]
        store = types.SimpleNamespace(records=lambda: records)
        definition = dataclasses.replace(DEFINITION, gpu_headroom=gpu_headroom)
        executor = types.SimpleNamespace(definition=definition, store=store)
        return Confirmation(executor).fit_together(BASELINE, [OTHER])

    return ask


def test_finalists_are_open_at_once_where_memory_is_enough_for_all(fit_together):
    assert fit_together(held=100, left=1000)
    assert not fit_together(held=100, left=250)


def test_what_they_hold_in_shared_memory_must_fit_there_too(fit_together):
    assert fit_together(held=10, shared=20, left=1000, shared_left=64)
    assert not fit_together(held=10, shared=30, left=1000, shared_left=64)
    assert fit_together(held=10, shared=0, left=1000, shared_left=0)


def test_on_a_gpu_all_of_them_take_half_of_its_memory_at_most(fit_together):
    assert fit_together(device=25)
    assert not fit_together(device=26)
    assert not fit_together(device=25, gpu_headroom=0.6)


def test_rounds_of_other_machines_count_where_all_ran_and_stay_among_themselves():
    def run(config, host, number, rate):
        return made_up.record(
            made_up.block_at(rate),
            config=config,
            phase=Phase.CONFIRM,
            host=host,
            round_number=number,
        )

    records = [
        *(run(BASELINE, "here", 1, 100.0), run(OTHER, "here", 1, 200.0)),
        *(run(BASELINE, "there", 1, 10.0), run(OTHER, "there", 1, 30.0)),
        *(run(BASELINE, "there", 2, 10.0), run(BASELINE, "new", 1, 50.0)),
    ]
    found = confirmed_together(records, {BASELINE, OTHER})
    assert [(r.host, r.round_number) for r in found] == [("here", 1)] * 2 + [("there", 1)] * 2
    runs = complete_rounds(found, BASELINE)
    assert [r.units_per_s for r in runs[BASELINE]] == [100.0, 10.0]
    assert [r.units_per_s for r in runs[OTHER]] == [200.0, 30.0]
