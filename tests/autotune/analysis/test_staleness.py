"""Whether a settings file holds, from runs that nobody made."""

import dataclasses
import re

import pytest

from autotune.analysis.staleness import judge
from autotune.best_config import Speedup
from autotune.config import ThroughputConfig
from autotune.requirements import Objective, Requirements
from autotune.study.records import Phase

from .. import made_up
from ..test_best_config import make_best

BASELINE = ThroughputConfig(batch_size=4)
CONFIG = ThroughputConfig(batch_size=4, num_workers=2)
RIVAL = ThroughputConfig(batch_size=4, num_workers=4)
STATED = Speedup(ratio=2.0, low=1.8, high=2.2, significant=True)
BEST = dataclasses.replace(make_best(), config=CONFIG, speedup=STATED)


def runs(**rates):
    """Three rounds, which differ by a little."""
    configs = {"baseline": BASELINE, "config": CONFIG, "rival": RIVAL}
    return {
        configs[name]: [
            made_up.record(
                *[made_up.block_at(rate * wobble)] * 4,
                config=configs[name],
                phase=Phase.CONFIRM,
                round_number=number,
            )
            for number, wobble in enumerate((1.0, 1.003, 0.997))
        ]
        for name, rate in rates.items()
    }


def verdict(found, *, best=BEST, config=CONFIG, rival=CONFIG, failures=None, differences=()):
    return judge(
        best,
        config,
        baseline=BASELINE,
        rival=rival,
        runs=found,
        failures=failures or {},
        differences=differences,
    )


@pytest.mark.parametrize(
    ("found", "changes", "holds", "said"),
    [
        (
            {"baseline": 100, "config": 200},
            {},
            True,
            "holds: its settings reach 2.00 times .* and nothing that its study knows is faster",
        ),
        ({"baseline": 100, "config": 200}, {"rival": None}, True, "of the script's own$"),
        ({"baseline": 100, "config": 200, "rival": 201}, {"rival": RIVAL}, True, "^holds"),
        (
            {"baseline": 100, "config": 200, "rival": 260},
            {"rival": RIVAL},
            False,
            r"^does not hold: batch 4, workers 4 .* is 1.30 times \(.*\) as fast",
        ),
        ({"baseline": 100, "config": 80}, {}, False, "^does not hold: its settings reach 0.80"),
        (
            {"baseline": 100, "config": 130},
            {},
            False,
            r"^does not bring what it states: .* 1.30 times .* where it states 2.00 times",
        ),
        (
            {"baseline": 100, "config": 200},
            {"differences": ("torch: 2.12.0, here 2.13.0",)},
            False,
            r"^may not hold any more: .*torch: 2.12.0, here 2.13.0\). As yet its settings reach 2",
        ),
        (
            {"baseline": 100},
            {"failures": {CONFIG: made_up.FAILURE}},
            False,
            "^does not hold: its settings fail: crashed: it broke",
        ),
    ],
)
def test_a_file_holds_where_nothing_speaks_against_it(found, changes, holds, said):
    verdict_found = verdict(runs(**found), **changes)
    assert verdict_found.holds is holds
    assert re.search(said, verdict_found.sentence), verdict_found.sentence


def test_the_scripts_own_settings_hold_while_nothing_is_faster():
    best = dataclasses.replace(
        BEST, config=BASELINE, speedup=dataclasses.replace(STATED, significant=False)
    )
    found = verdict(runs(baseline=100), best=best, config=BASELINE, rival=BASELINE)
    assert found.holds
    assert found.speedup is None
    found = verdict(runs(baseline=100, rival=150), best=best, config=BASELINE, rival=RIVAL)
    assert not found.holds


def test_settings_that_were_asked_for_may_be_slower_than_the_scripts_own():
    wanted = Requirements(batch_size=8)
    config = ThroughputConfig(batch_size=8)
    slower = Speedup(ratio=0.8, low=0.75, high=0.85, significant=False)
    best = dataclasses.replace(BEST, config=config, speedup=slower, requirements=wanted)
    found = runs(baseline=100, config=80)
    found[config] = [dataclasses.replace(run, config=config) for run in found.pop(CONFIG)]
    assert verdict(found, best=best, config=config, rival=config).holds
    # It takes less of something else.
    for saves in (Requirements(objective=Objective.CPU), Requirements(max_memory_bytes=2**20)):
        frugal = dataclasses.replace(best, requirements=saves)
        assert verdict(found, best=frugal, config=config, rival=None).holds
    unwanted = dataclasses.replace(best, requirements=None)
    assert not verdict(found, best=unwanted, config=config, rival=config).holds
