"""What failures that are alike teach of configurations that were not tried."""

import dataclasses
import itertools
import random

import pytest

from autotune.analysis.lessons import learn
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.space import Space
from autotune.study.records import Phase
from autotune.study.storage import open_storage
from autotune.study.store import open_study

from .. import made_up

BASELINE = ThroughputConfig(batch_size=32, num_threads=2)
LOCAL = "AttributeError: Can't pickle local object 'main.<locals>.<lambda>'"
SPACE = Space(
    axes={
        "batch_size": (16, 32, 64, 128),
        "num_workers": (0, 1, 2, 4),
        "prefetch_factor": (2, 4),
        "num_threads": (1, 2),
    }
)


def config(**settings):
    return SPACE.changed(BASELINE, **settings)


class Trials:
    """The records of a study that begins with its baseline."""

    def __init__(self):
        self._numbers = itertools.count()
        self.records = []
        self.ran(BASELINE, phase=Phase.BASELINE)

    def _keep(self, config, phase, **changes):
        self.records.append(
            made_up.record(
                made_up.block(), config=config, number=next(self._numbers), phase=phase, **changes
            )
        )

    def ran(self, *configs, phase=Phase.SEARCH):
        for config in configs:
            self._keep(config, phase)
        return self

    def failed(
        self, *configs, message=LOCAL, cause=FailureCause.CRASHED, setting=None, phase=Phase.SEARCH
    ):
        for number, config in enumerate(configs):
            failure = Failure(cause=cause, message=message.format(number), setting=setting)
            self._keep(config, phase, measurement=None, failure=failure)
        return self

    @property
    def subjects(self):
        return [lesson.subject for lesson in learn(self.records)]


def workers(*numbers, **settings):
    return [config(num_workers=number, **settings) for number in numbers]


def test_three_failures_that_share_having_workers_rule_workers_out():
    trials = Trials().failed(*workers(2, 1, 4))
    [lesson] = learn(trials.records)
    assert lesson.sentence == f"num_workers > 0 is ruled out: 3 trials failed alike: {LOCAL}"
    assert lesson.covers(config(num_workers=4, batch_size=128, prefetch_factor=4, num_threads=1))
    assert not lesson.covers(config(batch_size=128))


def test_two_failures_are_enough_beside_three_configurations_that_ran():
    ran = [config(batch_size=64), config(num_threads=1)]
    assert Trials().ran(ran[0]).failed(*workers(1, 2)).subjects == []
    assert Trials().ran(*ran).failed(*workers(1, 2)).subjects == ["num_workers > 0"]


def test_the_same_configuration_failing_again_is_no_further_evidence():
    assert Trials().failed(*workers(2, 2, 2, 2)).subjects == []


def test_a_number_is_ruled_out_with_all_that_are_larger_if_none_of_these_ran():
    trials = Trials().ran(config(batch_size=16), config(num_threads=1))
    trials.failed(config(batch_size=64), config(batch_size=128))
    assert trials.subjects == ["batch_size >= 64"]
    trials.ran(config(batch_size=128, num_threads=1))
    assert trials.subjects == []


def test_a_single_value_is_ruled_out_where_larger_ones_ran():
    trials = Trials().ran(*workers(2, 4))
    trials.failed(config(num_workers=1), config(num_workers=1, batch_size=64))
    assert trials.subjects == ["num_workers = 1"]


def test_a_value_that_is_no_number_is_ruled_out_by_itself():
    pinned = [
        dataclasses.replace(BASELINE, pin_memory=True, batch_size=size) for size in (16, 32, 64)
    ]
    trials = Trials().ran(config(batch_size=16), config(batch_size=64)).failed(*pinned[:2])
    assert trials.subjects == ["pin_memory = true"]
    [lesson] = learn(trials.records)
    assert lesson.covers(pinned[2])


def test_where_two_settings_may_be_to_blame_only_both_together_are_ruled_out():
    trials = Trials().failed(*workers(1, 2, 4, batch_size=64))
    [lesson] = learn(trials.records)
    assert lesson.subject == "batch_size >= 64 together with num_workers > 0"
    assert not lesson.covers(config(num_workers=1))
    assert not lesson.covers(config(batch_size=128))
    # What is tried next tells which it is.
    assert trials.ran(config(batch_size=64)).subjects == ["num_workers > 0"]


def test_a_number_of_which_larger_ones_ran_is_not_to_blame_where_another_setting_may_be():
    trials = Trials().ran(config(batch_size=128)).failed(*workers(1, 2, 4, batch_size=64))
    assert trials.subjects == ["num_workers > 0"]


def test_failures_are_alike_whatever_numbers_they_name():
    trials = Trials().failed(*workers(1, 2, 4), message="RuntimeError: worker {0} (pid 12{0}) died")
    assert trials.subjects == ["num_workers > 0"]
    trials = Trials().failed(*workers(1, 2), message="RuntimeError: one")
    assert trials.failed(*workers(4), message="RuntimeError: another").subjects == []


def test_a_lesson_covers_nothing_that_ran_nor_the_baseline():
    trials = Trials().failed(*workers(1, 2, 4)).ran(config(num_workers=2))
    # Of those, one ran at another time: workers are not to blame.
    assert trials.subjects == []
    others = [config(batch_size=16), config(batch_size=64), config(batch_size=128)]
    for lesson in learn(Trials().failed(BASELINE, *others).records):
        assert not lesson.covers(BASELINE)


def test_a_failure_without_the_value_ends_the_lesson():
    trials = Trials().failed(*workers(1, 2, 4))
    assert trials.subjects
    assert trials.failed(config(batch_size=64)).subjects == []


@pytest.mark.parametrize(
    ("cause", "phase"),
    [
        (FailureCause.OUT_OF_MEMORY, Phase.SEARCH),
        (FailureCause.TOO_MANY_FILES, Phase.SEARCH),
        (FailureCause.INTERRUPTED, Phase.SEARCH),
        (FailureCause.KILLED, Phase.SEARCH),
        (FailureCause.TIMED_OUT, Phase.CONFIRM),
    ],
)
def test_failures_for_other_reasons_than_a_value_teach_nothing(cause, phase):
    configs = workers(1, 2, 4)
    trials = Trials().failed(*configs, *configs, cause=cause, phase=phase)
    assert trials.subjects == []


def test_hanging_in_the_search_teaches_as_other_failures_do():
    trials = Trials().failed(*workers(1, 2, 4), cause=FailureCause.TIMED_OUT, message="hung")
    [lesson] = learn(trials.records)
    assert lesson.sentence == (
        "num_workers > 0 is ruled out: 3 trials failed alike: timed out: hung"
    )


def test_a_setting_that_is_ignored_stays_as_it_is_after_one_failure():
    trials = Trials().failed(
        config(batch_size=64),
        cause=FailureCause.SETTING_IGNORED,
        message="batches hold 32",
        setting="batch_size",
    )
    [lesson] = learn(trials.records)
    assert lesson.sentence == (
        "batch_size other than 32 is ruled out: setting ignored: batches hold 32"
    )
    assert lesson.covers(config(batch_size=16, num_workers=2))
    assert not lesson.covers(config(num_workers=2))


def test_workers_that_repeat_data_are_ruled_out_with_all_larger_numbers_after_one_failure():
    trials = Trials().ran(config(num_workers=1))
    trials.failed(*workers(2), cause=FailureCause.REPEATED_DATA, setting="num_workers")
    assert trials.subjects == ["num_workers >= 2"]


def test_trials_that_fail_at_random_hardly_ever_cost_much_of_the_space():
    space = SPACE.configurations(BASELINE)
    num_runs, num_trials = 200, 20
    lost = []
    for seed in range(num_runs):
        chance = random.Random(seed)
        trials = Trials()
        for _ in range(num_trials):
            open_ones = [c for c in space if not any(x.covers(c) for x in learn(trials.records))]
            tried = chance.choice(open_ones)
            if chance.random() < 0.1:
                trials.failed(tried)
            else:
                trials.ran(tried)
        covered = [c for c in space if any(x.covers(c) for x in learn(trials.records))]
        lost.append(len(covered) / len(space))
    assert sum(lost) / num_runs < 0.02
    assert sum(share > 0.25 for share in lost) <= 0.02 * num_runs


def test_a_study_that_goes_on_knows_its_lessons(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    open_storage(url, writable=True)
    store = open_study(url, "x", fresh=False)
    made_up.keep_trial(store, BASELINE, 100.0, Phase.BASELINE)
    number = store.begin(config(num_workers=2), Phase.SEARCH)
    store.fail(
        number,
        Failure(cause=FailureCause.REPEATED_DATA, message="twice", setting="num_workers"),
    )
    again = open_study(url, "x", fresh=False)
    [lesson] = learn(again.records())
    assert lesson.sentence == "num_workers >= 2 is ruled out: repeated data: twice"
