"""What loading takes of the CPU, and what trials tell of the garbage collector's part."""

import dataclasses

import pytest

from autotune.analysis.loading import collector_share, loader_cpu_share
from autotune.config import ThroughputConfig
from autotune.measurement import FailureCause
from autotune.report.text import collector
from autotune.study.records import Phase
from autotune.study.storage import storage_url
from autotune.study.store import open_study

from ..commands import autotune_here, autotune_run, trials
from ..made_up import block, keep_trial, record, sample
from ..report.test_html import BASELINE, FACTS

ALONE = ThroughputConfig(batch_size=4)
WORKERS = ThroughputConfig(batch_size=4, num_workers=2)


def run_of(config, loader_cpu_s, **changes):
    """A trial of a second in which loading used the CPU for so long, for 4,000 units."""
    own = {"wait_cpu_s": loader_cpu_s, "cpu_s": 1.0, "own_cpu_s": 1.0}
    of_workers = {"cpu_s": 0.5 + loader_cpu_s, "own_cpu_s": 0.5, "wait_cpu_s": 0.3}
    used = of_workers if config.num_workers else own
    return record(block(duration_s=1.0, **{**used, **changes}), config=config)


@pytest.mark.parametrize("config", [ALONE, WORKERS])
def test_loading_is_what_the_training_process_or_its_workers_use(config):
    samples = run_of(config, 0.4).samples
    assert loader_cpu_share(samples, config) == pytest.approx(0.4)
    disturbed = sample(block(duration_s=1.0, wait_cpu_s=0.9, cpu_s=9.0, stolen_s=0.9))
    assert loader_cpu_share([*samples, disturbed], config) == pytest.approx(0.4)


@pytest.mark.parametrize("config", [ALONE, WORKERS])
def test_the_collectors_part_is_what_loading_takes_less_without_it(config):
    frozen, raised = (dataclasses.replace(config, gc=name) for name in ("frozen", "raised"))
    records = [run_of(config, 0.8), run_of(frozen, 0.6)]
    assert collector_share(records, config) == pytest.approx(0.25)
    assert collector_share(records, frozen) == pytest.approx(0.25)
    # The best of the others tells, per unit and not per second.
    faster = run_of(raised, 0.8, num_units=8000.0)
    assert collector_share([*records, faster], config) == pytest.approx(0.5)


def test_without_trials_of_both_nothing_is_told():
    frozen = dataclasses.replace(ALONE, gc="frozen")
    other = dataclasses.replace(ALONE, batch_size=8)
    assert collector_share([run_of(ALONE, 0.8), run_of(other, 0.4)], ALONE) is None
    assert collector_share([run_of(frozen, 0.8)], ALONE) is None
    assert collector_share([run_of(ALONE, 0.0), run_of(frozen, 0.0)], ALONE) is None


def test_a_collector_that_costs_loading_nothing_has_no_part():
    frozen = dataclasses.replace(ALONE, gc="frozen")
    assert collector_share([run_of(ALONE, 0.5), run_of(frozen, 0.6)], ALONE) == 0.0


class View:
    """As much of a study's view as the line needs."""

    def __init__(self, *records, best=None):
        self.records = records
        self.baseline = ALONE
        self.best = best


def test_the_report_says_what_the_collector_takes_where_that_was_measured():
    frozen = dataclasses.replace(ALONE, gc="frozen")
    both = [run_of(ALONE, 0.8), run_of(frozen, 0.4)]
    line = (
        "with Python's own settings, the garbage collector takes 50 % of the loader's CPU time "
        "(batch 4"
    )
    assert collector(View(*both, best=frozen))[0].startswith(line)
    assert collector(View(*both, best=WORKERS))[0].startswith(line)
    assert collector(View(both[0], best=WORKERS)) == []
    assert collector(View(run_of(ALONE, 0.8), run_of(frozen, 0.79), best=frozen)) == []


def test_a_stored_study_tells_the_collector_on_its_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_study(storage_url("studies/autotune.db"), "s", fresh=False)
    axes = {"gc": ["default", "frozen"]}
    store.set_facts(**{**FACTS, "searched_axes": axes, "script_default": BASELINE.to_dict()})
    frozen = dataclasses.replace(BASELINE, gc="frozen")
    for _ in range(3):
        keep_trial(store, BASELINE, 100.0)
        keep_trial(store, frozen, 200.0)
    shown = autotune_here(command="show").stdout
    assert "garbage collector │ default (Python's) │ frozen" in shown
    assert ", gc frozen" in shown
    assert autotune_here("-o", "report.html", command="report").returncode == 0
    assert "garbage collector" in (tmp_path / "report.html").read_text()


# Loading that keeps a core busy for 2 ms of every 3.
BUSY = "end = time.perf_counter() + 0.002\n            while time.perf_counter() < end: pass"


@pytest.mark.long
@pytest.mark.parametrize(("item", "searched"), [(BUSY, True), ("time.sleep(0.03)", False)])
def test_the_collector_is_searched_where_loading_is_work_and_also_when_resumed(
    study, item, searched
):
    axes = {"batch_size": [4], "num_workers": [0]}
    options = study(script={"item": item, "step": "time.sleep(0.001)"}, axes=axes)
    assert autotune_run(*options, "--max-trials", "1").returncode == 0
    assert autotune_run(*options).returncode == 0
    frame = trials()
    assert FailureCause.CRASHED not in set(frame["cause"])
    assert frame.attrs["searched_axes"].get("gc") == (["default", "frozen"] if searched else None)
    assert ("frozen" in set(frame["gc"])) == searched
    assert set(frame[frame["phase"] == Phase.BASELINE]["gc"]) == {"default"}
