"""A study's trials in the forms that other tools read, through those tools' own writers."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autotune.errors import BadInputError
from autotune.files import write_atomically
from autotune.report.dataframe import BLOCK_COLUMNS, FIGURE_COLUMNS, SETTING_COLUMNS

FORMS = (".csv", ".json", ".parquet")


def to_csv(frame: pd.DataFrame) -> str:
    """The trials as comma-separated values, without the lists of blocks."""
    return str(frame.drop(columns=list(BLOCK_COLUMNS)).to_csv(index=False))


def to_json(frame: pd.DataFrame) -> str:
    """The trials as a JSON list of objects."""
    return str(frame.to_json(orient="records", indent=2))


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write the trials as CSV, JSON or Parquet, as the file's name ends.

    Raises:
        BadInputError: It ends otherwise, cannot be written, or pyarrow is missing for Parquet.
    """
    if path.suffix == ".csv":
        write_atomically(path, to_csv(frame))
    elif path.suffix == ".json":
        write_atomically(path, to_json(frame))
    elif path.suffix == ".parquet":
        _require("pyarrow", "Parquet")
        # What is known of the study as a whole does not fit into Parquet's own metadata.
        trials = frame.copy()
        trials.attrs = {}
        write_atomically(path, trials.to_parquet(engine="pyarrow", index=False))
    else:
        raise BadInputError(f"{path}: must end with {', '.join(FORMS)}")


def log_to_mlflow(frame: pd.DataFrame, uri: str) -> int:
    """Log each trial that has ended as a run of an experiment named after the study.

    Trials that are there already are left as they are.

    Args:
        frame: The trials (see `frame.load_study`).
        uri: MLflow's tracking URI.

    Returns:
        How many were added.

    Raises:
        BadInputError: MLflow is not installed, or cannot write there.
    """
    mlflow = _require("mlflow", "MLflow")
    # What it does to its own database is of no use here.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        name = f"autotune {frame.attrs['study']}"
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        known = _numbers_in(client, experiment)
        trials = [trial for trial in _trials(frame) if str(trial[0]["number"]) not in known]
        for row, settings, figures in trials:
            _log_run(client, experiment, row, settings, figures)
    except mlflow.exceptions.MlflowException as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInputError(f"--mlflow {uri}: cannot be written to: {reason}") from error
    return len(trials)


def _numbers_in(client: Any, experiment: str) -> set[str]:  # noqa: ANN401
    """Numbers of the trials that an experiment of MLflow holds."""
    numbers: set[str] = set()
    token = None
    while True:
        page = client.search_runs([experiment], page_token=token)
        numbers |= {run.data.tags.get("autotune.trial", "") for run in page}
        token = page.token
        if not token:
            return numbers


def _log_run(
    client: Any,  # noqa: ANN401
    experiment: str,
    row: pd.Series[Any],
    settings: dict[str, int | bool | str],
    figures: dict[str, float],
) -> None:
    entities = importlib.import_module("mlflow.entities")
    # Optuna stores local times.
    began_ms = int(row["started_at"].to_pydatetime().timestamp() * 1000)
    took_ms = 0 if pd.isna(row["duration_s"]) else int(1000 * row["duration_s"])
    failed = row["state"] == "failed"
    tags = {"autotune.trial": str(row["number"]), "autotune.phase": row["phase"]}
    if failed:
        tags |= {"autotune.cause": row["cause"], "autotune.message": row["message"] or ""}
    run_name = f"trial {row['number']}: {row['configuration']}"
    run = client.create_run(experiment, start_time=began_ms, run_name=run_name, tags=tags).info
    client.log_batch(
        run.run_id,
        metrics=[entities.Metric(name, value, began_ms, 0) for name, value in figures.items()],
        params=[entities.Param(name, str(value)) for name, value in settings.items()],
    )
    client.set_terminated(
        run.run_id, status="FAILED" if failed else "FINISHED", end_time=began_ms + took_ms
    )


def log_to_tensorboard(frame: pd.DataFrame, directory: Path) -> int:
    """Log each trial that has figures as a run for TensorBoard and its HParams view.

    A directory that holds such runs already gets those that are missing.

    Returns:
        How many were added.

    Raises:
        BadInputError: TensorBoard is not installed, or the directory cannot be written.
    """
    _require("tensorboard", "TensorBoard")
    # TensorBoard's own notes about TensorFlow are of no use here.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    writers = importlib.import_module("torch.utils.tensorboard")
    count = 0
    for row, settings, figures in _trials(frame):
        run = directory / f"{frame.attrs['study']}-{row['number']:04d}"
        if not figures or run.exists():
            continue
        try:
            writer = writers.SummaryWriter(str(run))
        except OSError as error:
            raise BadInputError(f"--tensorboard {directory}: {error.strerror}") from error
        with writer:
            metrics = {f"trial/{name}": value for name, value in figures.items()}
            writer.add_hparams(settings | {"phase": row["phase"]}, metrics, run_name=".")
            for step, rate in enumerate(row["block_units_per_s"]):
                writer.add_scalar("block/units_per_s", rate, step)
        count += 1
    return count


def _trials(
    frame: pd.DataFrame,
) -> Iterator[tuple[pd.Series[Any], dict[str, int | bool | str], dict[str, float]]]:
    """Each trial that has ended: its row, its settings, and its figures."""
    for _, row in frame[frame["state"] != "running"].iterrows():
        settings = {name: _plain(row[name]) for name in SETTING_COLUMNS}
        figures = {
            name: float(row[name])
            for name in FIGURE_COLUMNS
            if not pd.isna(row[name]) and math.isfinite(float(row[name]))
        }
        yield row, settings, figures


def _plain(value: Any) -> int | bool | str:  # noqa: ANN401
    """A setting as Python's own type; "none" where it is not set."""
    if pd.isna(value):
        return "none"
    if isinstance(value, str):
        return value
    return bool(value) if isinstance(value, bool | np.bool_) else int(value)


def _require(module: str, what: str) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInputError(
            f"{what} is not installed: pip install 'autotune[export]', or {module} alone"
        ) from error
