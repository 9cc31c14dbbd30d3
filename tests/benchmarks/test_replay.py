"""Truth tables: what is read out of recorded blocks, and what a replayed run is charged."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from autotune.config import ThroughputConfig
from autotune.measurement import Failure
from benchmarks.replay import ReplayBench, read_truth

BASELINE = ThroughputConfig(batch_size=4, num_threads=1)
RATES = {
    (batch_size, num_workers): 100.0 * batch_size * (1 + num_workers)
    for batch_size in (4, 8, 16)
    for num_workers in (0, 1)
}


@pytest.fixture
def recorded(tmp_path):
    """Writes a table; each configuration in each of some groups, which the machine slows."""

    def write(
        *,
        drift=0.0,
        own=0.0,
        disturbed=lambda turn: False,
        rates=RATES,
        groups_of=lambda key: range(6),
    ):
        random = np.random.default_rng(0)
        rows = []
        for (batch_size, num_workers), rate in rates.items():
            for group in groups_of((batch_size, num_workers)):
                slow = math.exp(drift * math.sin(group))
                of_run = math.exp(random.normal(0, own)) if own else 1.0
                for turn in range(4):
                    spoiled = disturbed(turn)
                    rows.append(
                        {
                            "batch_size": batch_size,
                            "num_workers": num_workers,
                            "prefetch_factor": 2 if num_workers else None,
                            "num_threads": 1,
                            "group": group,
                            "turn": turn,
                            "at_s": 20.0 * group + turn,
                            "start_up_s": 0.1,
                            "settle_s": 0.4,
                            "duration_s": 0.25,
                            "num_steps": 10,
                            "num_samples": 10 * batch_size,
                            "num_units": 0.25 * rate * slow * of_run * (0.1 if spoiled else 1),
                            "wait_s": 0.1,
                            "wait_cpu_s": 0.05,
                            "cpu_s": 0.25,
                            "ready_change": 0,
                            "disturbed": int(spoiled),
                        }
                    )
        pd.DataFrame(rows).to_csv(tmp_path / "made_up.csv.gz", index=False)
        facts = {"baseline": BASELINE.to_dict(), "fresh_start_s": [2.0, 3.0, 2.5]}
        (tmp_path / "made_up.json").write_text(json.dumps(facts))
        return read_truth(tmp_path / "made_up.csv.gz")

    return write


def config(batch_size, num_workers):
    return ThroughputConfig(batch_size=batch_size, num_workers=num_workers, num_threads=1)


def test_the_machine_is_told_from_the_configurations(recorded):
    table = recorded(drift=0.3)
    assert table.name == "made_up"
    assert len(table.runs) == len(RATES)
    for (key, rate), (other, other_rate) in itertools.pairwise(RATES.items()):
        ratio = table.rates[config(*key)] / table.rates[config(*other)]
        assert ratio == pytest.approx(rate / other_rate, rel=0.01)
    assert table.drift.std() == pytest.approx(0.3 * np.sin(range(6)).std(), rel=0.05)
    assert table.regret(config(16, 1)) == 0
    assert table.regret(config(16, 0)) == pytest.approx(0.5, abs=0.01)


def test_disturbed_blocks_do_not_count_where_there_are_others(recorded):
    plain, spoiled = recorded(), recorded(disturbed=lambda turn: turn == 2)
    assert spoiled.rates[config(8, 0)] == pytest.approx(plain.rates[config(8, 0)])


def test_what_runs_differ_by_is_kept_and_the_truth_is_drawn_together(recorded):
    table = recorded(own=0.1, groups_of=lambda key: range(10))
    assert table.rates[config(16, 1)] == pytest.approx(RATES[16, 1], rel=0.15)
    logs = [
        math.log(run.num_units.sum() / run.duration_s.sum()) - math.log(table.rates[key])
        for key, runs in table.runs.items()
        for run in runs
    ]
    assert np.std(logs) == pytest.approx(0.1, rel=0.3)


def test_the_fastest_are_drawn_together_most_those_that_were_measured_least(recorded):
    # All are equally fast, and one is slow.
    rates = {(4, 0): 100.0, **{(2**power, 1): 800.0 for power in range(2, 18)}}
    often = {key for key in rates if key[1] and key[0] % 3 == 1}
    table = recorded(rates=rates, own=0.06, groups_of=lambda key: range(24 if key in often else 3))
    errors = {key: math.log(table.rates[config(*key)] / rates[key]) for key in rates}
    # The luckiest of twelve means of three would seem 5 % too fast.
    assert max(error for key, error in errors.items() if key not in often) < 0.03
    assert errors[4, 0] == pytest.approx(0, abs=0.1)


def test_a_replayed_run_is_charged_what_the_recorded_one_took(recorded):
    bench = ReplayBench(recorded(), seed=0)
    run = bench.start(config(8, 1))
    assert bench.now_s == pytest.approx(0.5)
    reading = run.measure(2)
    assert reading.duration_s == pytest.approx(0.5)
    assert reading.num_units / reading.duration_s == pytest.approx(RATES[8, 1])
    assert bench.now_s == pytest.approx(1.0, abs=0.02)
    fresh = bench.start(config(8, 1), fresh=True)
    assert bench.now_s == pytest.approx(4.0, abs=0.02)
    assert fresh.measure_for(7.0).duration_s == pytest.approx(7.0)


def test_what_was_not_recorded_fails(recorded):
    bench = ReplayBench(recorded(), seed=0)
    assert isinstance(bench.run(ThroughputConfig(batch_size=5), 1), Failure)


def test_seeds_decide(recorded):
    table = recorded(own=0.1)

    def rate(seed):
        bench = ReplayBench(table, seed)
        return bench.run(config(4, 0), 1).num_units

    assert rate(3) == rate(3)
    assert len({rate(seed) for seed in range(8)}) > 1


def test_the_exhaustive_search_starts_every_configuration_afresh(recorded):
    table = recorded()
    assert table.exhaustive_s(4.0) == pytest.approx(len(RATES) * (2.5 + 0.5 + 4.0))


def test_a_column_of_words_is_read(recorded, tmp_path):
    recorded()
    path = tmp_path / "made_up.csv.gz"
    frame = pd.read_csv(path)
    pd.concat([frame.assign(gc="default"), frame.assign(gc="frozen")]).to_csv(path, index=False)
    runs = read_truth(path).runs
    assert len(runs) == 2 * len(RATES)
    assert dataclasses.replace(config(4, 1), gc="frozen") in runs
