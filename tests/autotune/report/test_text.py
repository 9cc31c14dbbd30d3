"""What is told of a study, in rows."""

import dataclasses

import pytest

from autotune.config import ThroughputConfig
from autotune.measurement import StartMode, summarise
from autotune.report import plots as figures
from autotune.report.dataframe import load_study
from autotune.report.study_view import open_view
from autotune.report.text import cautions, changed_settings, trial_rows
from autotune.study.records import Outcome, Phase
from autotune.study.storage import storage_url
from autotune.study.store import open_study

from ..made_up import SETTLING, block, sample
from ..test_best_config import make_best

CONFIG = ThroughputConfig(batch_size=4, num_threads=1)


@pytest.fixture
def rows(tmp_path):
    """Stores a trial for each of such samples; gives the rows that are shown of them."""

    def make(*samples):
        store = open_study(storage_url(tmp_path / "a.db"), "s", fresh=False)
        for found in samples:
            outcome = Outcome(
                measurement=summarise([found], CONFIG),
                samples=[found],
                start_mode=StartMode.FORK,
                start_up_s=0.1,
                duration_s=1.0,
                unit=None,
            )
            store.complete(store.begin(CONFIG, Phase.SEARCH), outcome)
        return trial_rows(load_study(tmp_path / "a.db"))

    return make


PLAIN = sample(block(), settling=SETTLING)
WITH_GPU = dataclasses.replace(PLAIN, blocks=(block(gpu_utilisation=0.875, gpu_energy_j=2.0),))


def test_gpu_utilisation_stands_beside_that_of_the_cores_where_any_trial_has_it(rows):
    shown = rows(WITH_GPU, PLAIN)
    assert [row["GPU %"].text for row in shown] == ["87.5", ""]
    headings = list(shown[0])
    assert headings.index("GPU %") == headings.index("CPU %") + 1


def test_without_a_gpu_there_is_no_column_for_it(rows):
    assert "GPU %" not in rows(PLAIN, PLAIN)[0]


def test_the_plot_of_utilisation_tells_the_gpus_where_it_is_known(rows, tmp_path):
    rows(WITH_GPU, PLAIN)
    traces = figures.utilisation(open_view(tmp_path / "a.db")).data
    assert [text for trace in traces for text in trace.customdata] == [", GPU 88 %", ""]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            {"batch_size": 2, "gradient_accumulation_steps": 8},
            {"batch_size": 8, "gradient_accumulation_steps": 2},
            "batch_size 2 -> 8 (gradient_accumulation_steps 8 -> 2)",
        ),
        (
            {"batch_size": 4, "num_workers": 0, "gc": "default"},
            {"batch_size": 4, "num_workers": 2, "gc": "frozen"},
            "num_workers 0 -> 2 (prefetch_factor 2), gc default -> frozen",
        ),
        (
            {"batch_size": 4, "num_workers": 2, "prefetch_factor": 2},
            {"batch_size": 4, "num_workers": 2, "prefetch_factor": 8, "pin_memory": True},
            "prefetch_factor 2 -> 8, pin_memory false -> true",
        ),
        (
            {"batch_size": 4, "num_workers": 2},
            {"batch_size": 4, "num_workers": 0, "num_threads": 1},
            "num_workers 2 -> 0, num_threads default -> 1",
        ),
    ],
)
def test_what_changed_is_told_setting_by_setting(before, after, told):
    change = changed_settings(ThroughputConfig(**before), ThroughputConfig(**after))
    assert change == f"{told}; keep the other settings"


def test_settings_that_change_more_than_the_speed_are_told_where_they_are_new():
    own = {"batch_size": 4, "num_workers": 1}
    new = ThroughputConfig(**own, in_order=False, matmul_precision="high")
    best = dataclasses.replace(make_best(), config=new)
    order, precision = cautions(best)
    assert order.startswith("note: in_order false: batches come as workers have them ready")
    assert precision.startswith("note: matmul_precision high: products of float32 matrices")
    before = dataclasses.replace(best.baseline, config=new)
    assert cautions(dataclasses.replace(best, baseline=before)) == []
    # Back at what everybody has.
    plain = dataclasses.replace(best, baseline=before, config=ThroughputConfig(**own))
    assert cautions(plain) == []
