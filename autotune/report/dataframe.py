"""A study as a pandas table."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pandas as pd

from autotune.analysis.noise import BlockSpread
from autotune.config import ThroughputConfig
from autotune.measurement import Measurement
from autotune.study.records import TrialRecord, read_records
from autotune.study.storage import reading, shown_url, storage_url
from autotune.study.store import find_study

SETTING_COLUMNS = tuple(field.name for field in dataclasses.fields(ThroughputConfig))
FIGURE_COLUMNS = tuple(field.name for field in dataclasses.fields(Measurement))
# Columns that hold a list in each row.
BLOCK_COLUMNS = ("block_s", "block_units_per_s")


def load_study(path_or_url: str | os.PathLike[str], name: str | None = None) -> pd.DataFrame:
    """The trials of a study, a row each, in the order in which they ran.

    Works on any machine, on finished studies, interrupted ones, and ones that are being written.

    Args:
        path_or_url: The SQLite file of a storage, or the URL of any storage of Optuna's.
        name: The study; the one that was made last where it is not given.

    Returns:
        Columns: `number`, `started_at`, `state` (`complete`, `failed` or `running`), `phase`,
        `start_mode`, `configuration` (the settings on one line), every setting, every figure of
        `autotune.measurement.Measurement` (shares and utilisation are 0 to 1),
        `relative_error` (half the width of the 95 % interval of the trial's throughput, as a
        share of it), `unsteady` (see `search.spread`), `start_up_s`, `duration_s`,
        `round_number` of the confirmation, `cause` and `message` of a failure, `unit` that
        `units_per_s` counts, and lists of the blocks' durations and rates, `block_s` and
        `block_units_per_s`. What a trial lacks is missing (NaN, NA, NaT or None).
        `frame.attrs` holds the study's facts: command, machine, baseline, versions, result.

    Raises:
        BadInputError: There is no such storage or study.
    """
    url = storage_url(path_or_url if isinstance(path_or_url, str) else Path(path_or_url))
    study = find_study(url, name)
    records = read_records(study)
    spread = BlockSpread.of(records)
    with reading(f"study {study.study_name}"):
        rows = [_row(record, spread) for record in records]
        frame = pd.DataFrame(rows, columns=_columns()).astype(_types())
    frame.attrs.update(study.user_attrs, study=study.study_name, storage=shown_url(url))
    return frame


def _row(record: TrialRecord, spread: BlockSpread) -> dict[str, object]:
    measurement, failure = record.measurement, record.failure
    figures = dataclasses.asdict(measurement) if measurement else {}
    state = "complete" if measurement else "failed" if failure else "running"
    blocks = [block for sample in record.samples for block in sample.blocks]
    return {
        "number": record.number,
        "started_at": record.started_at,
        "state": state,
        "phase": record.phase.value,
        "start_mode": record.start_mode.value if record.start_mode else None,
        "configuration": record.config.summary,
        **record.config.to_dict(),
        **figures,
        "relative_error": spread.relative_error(record),
        "unsteady": spread.is_unsteady(record) if measurement else None,
        "start_up_s": record.start_up_s,
        "duration_s": record.duration_s,
        "round_number": record.round_number,
        "cause": failure.cause.value if failure else None,
        "message": failure.message if failure else None,
        "unit": record.unit,
        "block_s": [block.duration_s for block in blocks],
        "block_units_per_s": [block.units_per_s for block in blocks],
    }


def _columns() -> list[str]:
    return [
        *("number", "started_at", "state", "phase", "start_mode", "configuration"),
        *SETTING_COLUMNS,
        *FIGURE_COLUMNS,
        *("relative_error", "unsteady", "start_up_s", "duration_s", "round_number"),
        *("cause", "message", "unit", *BLOCK_COLUMNS),
    ]


def _types() -> dict[str, str]:
    """Types that hold also where a study has few trials or none."""
    kinds = {"int": "Int64", "float": "float64", "bool": "boolean", "str": "str"}
    fields = (*dataclasses.fields(ThroughputConfig), *dataclasses.fields(Measurement))
    types = {field.name: kinds[str(field.type).removesuffix(" | None")] for field in fields}
    return {
        **types,
        "number": "int64",
        "started_at": "datetime64[ns]",
        "relative_error": "float64",
        "unsteady": "boolean",
        "start_up_s": "float64",
        "duration_s": "float64",
        "round_number": "Int64",
    }
