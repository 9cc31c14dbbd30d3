"""The trials of a study in other tools' hands, read back by these tools."""

import json
import sys
import warnings
from pathlib import Path

import optuna
import pandas as pd
import pytest

from autotune.config import ThroughputConfig
from autotune.report.dataframe import BLOCK_COLUMNS, load_study
from autotune.study.records import Phase
from autotune.study.storage import storage_url
from autotune.study.store import open_study

from ..commands import autotune_here
from ..made_up import FAILURE, keep_trial

BASELINE = ThroughputConfig(batch_size=4, num_threads=1)
LARGER = ThroughputConfig(batch_size=8, num_workers=2, num_threads=2)
TRACKERS = ["--mlflow", "sqlite:///mlflow.db", "--tensorboard", "runs"]


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """Two trials with figures, one that failed, and one that runs."""
    monkeypatch.chdir(tmp_path)
    store = open_study(storage_url("studies/autotune.db"), "s", fresh=False)
    keep_trial(store, BASELINE, 100.0, Phase.BASELINE)
    keep_trial(store, LARGER, 150.0)
    store.fail(store.begin(LARGER, Phase.SEARCH), FAILURE)
    store.begin(BASELINE, Phase.SEARCH)
    return load_study("studies/autotune.db")


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_file_holds_what_is_printed(trials, form):
    assert autotune_here("-o", f"trials.{form}", command="export").returncode == 0
    printed = autotune_here(f"--{form}", command="show").stdout
    assert Path(f"trials.{form}").read_text().strip() == printed.strip()
    read = pd.read_csv("trials.csv") if form == "csv" else pd.DataFrame(json.loads(printed))
    assert list(read["number"]) == [0, 1, 2, 3]
    assert list(read["samples_per_s"][:2]) == pytest.approx([100.0, 150.0])


def test_parquet_keeps_types_and_blocks(trials):
    assert autotune_here("-o", "trials.parquet", command="export").returncode == 0
    read = pd.read_parquet("trials.parquet")
    plain = list(set(trials.columns) - set(BLOCK_COLUMNS))
    pd.testing.assert_frame_equal(read[plain], trials[plain])
    assert [list(rates) for rates in read["block_units_per_s"]] == list(trials["block_units_per_s"])


def test_trackers_get_each_trial_that_has_ended_once(trials):
    # What these tools warn of among themselves is not ours.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for added in ("3 trials added to MLflow", "0 trials added to MLflow"):
            done = autotune_here(*TRACKERS, command="export")
            assert done.returncode == 0, done.stderr
            assert added in done.stdout
        assert "0 trials added to runs" in done.stdout
        check_mlflow()
        check_tensorboard(trials)


def check_mlflow():
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri="sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("autotune s")
    runs = client.search_runs([experiment.experiment_id])
    by_trial = {run.data.tags["autotune.trial"]: run for run in runs}
    assert sorted(by_trial) == ["0", "1", "2"]
    assert by_trial["1"].data.params["num_workers"] == "2"
    assert by_trial["1"].data.metrics["samples_per_s"] == pytest.approx(150.0)
    assert by_trial["1"].info.status == "FINISHED"
    assert by_trial["2"].info.status == "FAILED"
    assert by_trial["2"].data.tags["autotune.message"] == "it broke"


def check_tensorboard(trials):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert sorted(path.name for path in Path("runs").iterdir()) == ["s-0000", "s-0001"]
    events = EventAccumulator("runs/s-0001").Reload()
    assert events.Scalars("trial/samples_per_s")[0].value == pytest.approx(150.0)
    rates = [event.value for event in events.Scalars("block/units_per_s")]
    assert rates == pytest.approx(trials["block_units_per_s"][1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing to do: give a file"),
        (["-o", "trials.xlsx"], "trials.xlsx: must end with .csv, .json, .parquet"),
        (["-o", "no/such/trials.csv"], "there is no directory"),
        (["other", "-o", "trials.csv"], "study other: not in"),
        (["--mlflow", "http://127.0.0.1:9"], "--mlflow http://127.0.0.1:9: cannot be written to"),
        (["--tensorboard", "studies/autotune.db"], "--tensorboard studies/autotune.db: "),
    ],
)
def test_an_export_that_cannot_be_made_says_why(trials, monkeypatch, options, said):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = autotune_here(*options, command="export")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "options", "what"),
    [
        ("pyarrow", ["-o", "trials.parquet"], "Parquet"),
        ("mlflow", ["--mlflow", "sqlite:///mlflow.db"], "MLflow"),
        ("tensorboard", ["--tensorboard", "runs"], "TensorBoard"),
    ],
)
def test_a_tool_that_is_not_installed_is_named(trials, monkeypatch, module, options, what):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    done = autotune_here(*options, command="export")
    assert done.returncode == 2, done.stderr
    assert f"{what} is not installed: pip install 'autotune[export]'" in done.stderr


def test_the_plots_of_optuna_work_on_a_study(trials):
    study = optuna.load_study(study_name="s", storage="sqlite:///studies/autotune.db")
    assert study.metric_names == ["samples per second"]
    assert study.best_trial.params == {
        "batch_size": 8,
        "num_workers": 2,
        "prefetch_factor": 2,
        "num_threads": 2,
        "pin_memory": False,
        "gc": "default",
        "malloc": "default",
        "in_order": True,
        "cudnn_benchmark": False,
        "multiprocessing_context": "default",
        "matmul_precision": "default",
        "ranks_per_node": 1,
    }
    plots = optuna.visualization
    names = ["batch_size", "num_threads"]
    for figure in (
        plots.plot_optimization_history(study),
        plots.plot_slice(study, params=names),
        plots.plot_parallel_coordinate(study, params=names),
        plots.plot_contour(study, params=names),
        plots.plot_timeline(study),
        plots.plot_edf(study),
        plots.plot_rank(study, params=names),
        plots.plot_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=names
        ),
    ):
        assert figure.data
