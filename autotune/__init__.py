"""Measure a PyTorch training loop, find its fastest settings, and load them in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.api import is_trial, load_config, steps
from autotune.config import ThroughputConfig
from autotune.errors import (
    AutotuneError,
    BadInputError,
    ConfigError,
    StaleSettingsWarning,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = [
    "AutotuneError",
    "BadInputError",
    "ConfigError",
    "StaleSettingsWarning",
    "ThroughputConfig",
    "is_trial",
    "load_config",
    "load_study",
    "steps",
]
__version__ = "0.1.0"


def load_study(path_or_url: str | Path, name: str | None = None) -> pd.DataFrame:
    """A study as a table, a row per trial. See `autotune.report.dataframe.load_study`."""
    # Imported here: a training loop needs neither pandas nor optuna.
    from autotune.report.dataframe import load_study

    return load_study(path_or_url, name)
