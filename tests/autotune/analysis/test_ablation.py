"""What each setting does, reckoned from trials that nobody ran."""

import itertools
import math

import pytest

from autotune.analysis.ablation import Change, Effect, Severity, around, effects, find_changes
from autotune.analysis.estimates import Estimates
from autotune.config import ThroughputConfig
from autotune.intervals import Ratio
from autotune.space import Space

from .. import made_up

SPACE = Space(
    axes={
        "batch_size": (4, 8),
        "num_workers": (0, 2),
        "prefetch_factor": (2, 4),
        "num_threads": (1, 2),
    }
)
BASELINE = ThroughputConfig(batch_size=4, num_threads=2)
BEST = ThroughputConfig(batch_size=8, num_workers=2, prefetch_factor=4, num_threads=1)


def rate(config):
    """Workers and a single thread help each other, and are harmful alone."""
    helped = {(False, 2): 1.0, (False, 1): 0.8, (True, 2): 0.7, (True, 1): 1.5}
    return (
        100.0 * helped[config.num_workers > 0, config.num_threads] * (config.batch_size / 4) ** 0.5
    )


def run_of(config, number=0):
    step_s = config.batch_size / rate(config)
    num_steps = round(4 / step_s)
    waits = 0.0 if config.num_workers else 0.3
    blocks = [
        made_up.block(
            num_steps=num_steps,
            num_samples=num_steps * config.batch_size,
            num_units=float(num_steps * config.batch_size),
            duration_s=num_steps * step_s,
            wait_s=waits * num_steps * step_s,
        )
    ]
    return made_up.record(*blocks, config=config, number=number)


def estimates_of(configs, space=SPACE):
    known = dict.fromkeys(
        (BASELINE, *space.configurations(BASELINE), *around(space, BASELINE, BEST))
    )
    return Estimates.of(tuple(known), [run_of(c, n) for n, c in enumerate(configs)], usable_cores=2)


def test_what_an_earlier_study_found_is_expected_of_what_has_not_run():
    configs = (BASELINE, *SPACE.configurations(BASELINE), BEST)
    now = [run_of(BASELINE)]
    unaware = Estimates.of(configs, now, usable_cores=2)
    aware = Estimates.of(
        configs, now, usable_cores=2, earlier=[run_of(c, n) for n, c in enumerate(configs)]
    )

    def error(estimates):
        return abs(math.log(estimates.units_per_s(BEST) / rate(BEST)))

    assert error(aware) < 0.05 < error(unaware)
    # What did not run in this study is told as no fact all the same.
    assert aware.measured_ratio(BEST, BASELINE) is None


def test_what_is_compared_differs_in_one_setting_and_in_what_follows_from_it():
    estimates = estimates_of([BASELINE, BEST])
    changes = {c.setting: c for c in find_changes(SPACE, BASELINE, BEST, estimates)}
    assert changes["num_workers"].alone == ThroughputConfig(
        batch_size=4, num_workers=2, prefetch_factor=2, num_threads=2
    )
    assert changes["num_workers"].without == ThroughputConfig(batch_size=8, num_threads=1)
    # Without workers nothing is prefetched, so that this cannot be changed alone.
    assert changes["prefetch_factor"].alone is None
    assert changes["prefetch_factor"].without.prefetch_factor == 2
    assert set(changes) == set(SPACE.axes)


def test_an_effective_batch_is_kept():
    space = Space(axes={"batch_size": (4, 8)}, effective_batch_size=16)
    baseline = BASELINE.with_effective_batch_size(16)
    best = ThroughputConfig(batch_size=8, gradient_accumulation_steps=2, num_threads=2)
    estimates = Estimates.of((baseline, best), [run_of(baseline), run_of(best)], usable_cores=2)
    [change] = find_changes(space, baseline, best, estimates)
    assert change.alone == best
    assert change.without == baseline


def test_of_a_setting_that_stays_the_best_other_value_is_looked_at():
    space = Space(axes={"batch_size": (2, 4, 8), "num_threads": (1, 2)})
    best = ThroughputConfig(batch_size=8, num_threads=2)
    configs = [BASELINE, best, ThroughputConfig(batch_size=4, num_threads=1)]
    estimates = Estimates.of(
        (BASELINE, *space.configurations(BASELINE)), list(map(run_of, configs)), usable_cores=2
    )
    changes = find_changes(space, BASELINE, best, estimates)
    found = {e.change.setting: e for e in effects(changes, BASELINE, best, estimates)}
    threads = found["num_threads"]
    assert (threads.change.before, threads.change.after, threads.change.without) == (2, 1, None)
    assert threads.alone.ratio == pytest.approx(0.8, rel=0.05)
    assert threads.severity is Severity.NONE


def test_settings_that_help_only_together_are_told_as_such():
    estimates = estimates_of([BASELINE, *SPACE.configurations(BASELINE)])
    changes = find_changes(SPACE, BASELINE, BEST, estimates)
    found = {e.change.setting: e for e in effects(changes, BASELINE, BEST, estimates)}
    workers, threads, batch = (found[n] for n in ("num_workers", "num_threads", "batch_size"))
    assert workers.alone.ratio == pytest.approx(0.7, rel=0.07)
    assert workers.with_others.ratio == pytest.approx(1.5 / 0.8, rel=0.07)
    assert threads.alone.ratio == pytest.approx(0.8, rel=0.07)
    assert threads.with_others.ratio == pytest.approx(1.5 / 0.7, rel=0.07)
    assert batch.alone.ratio == pytest.approx(2**0.5, rel=0.07)
    assert {e.severity for e in (workers, threads, batch)} == {Severity.CRITICAL}
    assert found["prefetch_factor"].severity is Severity.NONE
    first, *_ = effects(changes, BASELINE, BEST, estimates)
    assert first.change.setting == "num_threads"


def test_what_did_not_run_is_not_told():
    estimates = estimates_of([BASELINE, BEST])
    changes = find_changes(SPACE, BASELINE, BEST, estimates)
    found = effects(changes, BASELINE, BEST, estimates)
    assert {effect.severity for effect in found} == {Severity.NOT_MEASURED}
    assert all(effect.alone is effect.with_others is None for effect in found)


def ratio(value, half_width=0.01):
    return Ratio(ratio=value, low=value - half_width, high=value + half_width)


@pytest.mark.parametrize(
    ("alone", "with_others", "severity"),
    [
        (ratio(1.3), ratio(1.1), Severity.CRITICAL),
        (ratio(0.7), ratio(1.25), Severity.CRITICAL),
        (ratio(1.24), None, Severity.MEDIUM),
        (ratio(1.0), ratio(1.03), Severity.LOW),
        (ratio(1.0), ratio(1.015), Severity.NONE),
        (ratio(1.3, 0.4), ratio(1.0), Severity.NONE),
        (None, ratio(1.3), Severity.CRITICAL),
        (None, ratio(1.01), Severity.NONE),
        (ratio(1.0), None, Severity.NOT_MEASURED),
        (None, None, Severity.NOT_MEASURED),
    ],
)
def test_severity_follows_the_rule(alone, with_others, severity):
    change = Change(setting="num_threads", before=2, after=1, alone=BASELINE, without=BEST)
    effect = Effect(change=change, alone=alone, with_others=with_others)
    assert effect.severity is severity


def test_a_setting_that_stays_is_no_problem_if_the_other_value_ran_and_not_measured_otherwise():
    change = Change(setting="num_threads", before=2, after=1, alone=BASELINE, without=None)
    measured = Effect(change=change, alone=ratio(1.3), with_others=None)
    assert measured.severity is Severity.NONE
    assert Effect(change=change, alone=None, with_others=None).severity is Severity.NOT_MEASURED


def test_what_failed_has_no_ratio():
    failed = made_up.record(made_up.block(), config=BEST, measurement=None, failure=made_up.FAILURE)
    estimates = Estimates.of((BASELINE, BEST), [run_of(BASELINE), failed], usable_cores=2)
    assert estimates.measured_ratio(BEST, BASELINE) is None
    assert estimates.measured_ratio(None, BASELINE) is None
    assert estimates.measured_ratio(BASELINE, BASELINE).ratio == 1.0


def test_a_setting_of_which_all_other_values_fail_is_told_and_is_not_measured():
    space = Space(axes={"batch_size": (2, 4), "num_workers": (0, 2)})
    with_workers = [space.changed(BASELINE, num_workers=2, batch_size=size) for size in (2, 4)]
    failed = [
        made_up.record(
            made_up.block(), config=c, number=n, measurement=None, failure=made_up.FAILURE
        )
        for n, c in enumerate(with_workers)
    ]
    estimates = Estimates.of(
        (BASELINE, *space.configurations(BASELINE)), [run_of(BASELINE, 9), *failed], usable_cores=2
    )
    changes = find_changes(space, BASELINE, BASELINE, estimates)
    found = {e.change.setting: e for e in effects(changes, BASELINE, BASELINE, estimates)}
    assert found["num_workers"].severity is Severity.NOT_MEASURED


def test_without_any_run_there_are_no_estimates():
    assert Estimates.of((BASELINE, BEST), [], usable_cores=2) is None


def test_everything_around_is_listed_once():
    found = around(SPACE, BASELINE, BEST)
    assert len(found) == len(set(found))
    for config, setting in itertools.product((BASELINE,), ("batch_size", "num_threads")):
        for value in SPACE.axes[setting]:
            assert SPACE.changed(config, **{setting: value}) in found


def test_a_value_that_was_run_is_told_of_although_another_is_believed_to_be_a_little_better():
    # Four workers do what two do, as far as is known, and have a larger buffer.
    space = Space(axes={"num_workers": (0, 2, 4), "prefetch_factor": (2,), "batch_size": (4,)})
    for ran in (2, 4):
        other = space.changed(BASELINE, num_workers=ran)
        estimates = estimates_of([BASELINE, other], space)
        [change] = [
            c
            for c in find_changes(space, BASELINE, BASELINE, estimates)
            if c.setting == "num_workers"
        ]
        assert change.alone == other


def test_how_workers_start_is_no_change_where_the_best_has_none():
    methods = ("spawn", "forkserver")
    space = Space(axes={"num_workers": (0, 2), "multiprocessing_context": methods})
    baseline = ThroughputConfig(
        batch_size=4, num_threads=2, num_workers=2, multiprocessing_context="spawn"
    )
    best = ThroughputConfig(batch_size=4, num_threads=2)
    known = tuple(dict.fromkeys((baseline, *space.configurations(baseline), best)))
    estimates = Estimates.of(known, [run_of(baseline), run_of(best, 1)], usable_cores=2)
    changes = {c.setting: c for c in find_changes(space, baseline, best, estimates)}
    start = changes["multiprocessing_context"]
    assert (start.before, start.after, start.without) == ("spawn", "forkserver", None)
    assert {c.alone for c in changes.values()} <= set(known)
    # What was run without being a part of the space is told as no fact, and ends nothing.
    plain = ThroughputConfig(batch_size=4, num_threads=2, num_workers=2)
    more = [run_of(c, n) for n, c in enumerate((baseline, best, plain))]
    found = Estimates.of(known, more, usable_cores=2)
    assert found.measured_ratio(plain, baseline) is None
    assert found.measured_ratio(best, baseline) is not None
