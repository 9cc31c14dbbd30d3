"""The environment that brings the start-up hook into every Python process of a command."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.best_config import BestConfig
from autotune.patch_target import PatchTarget, target_of

# Holds a job as JSON, for the hook.
PATCH_VARIABLE = "AUTOTUNE_PATCH"
_SEARCH_PATH = "PYTHONPATH"
_HOOK_DIRECTORY = Path(__file__).with_name("hook")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the hook does in a process.

    Attributes:
        target: What gets its settings; None where it is still to be found.
        config_path: The settings file of a training; None in a trial.
        notes: While the target is looked for: the file that gets the paths of what steps create.
    """

    target: PatchTarget | None = None
    config_path: str | None = None
    notes: str | None = None


def hook_environment(job: Job, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that start the hook with a job.

    Args:
        job: What it does.
        environment: What the command has without it.
    """
    paths = [str(_HOOK_DIRECTORY), *filter(None, [environment.get(_SEARCH_PATH)])]
    return {
        _SEARCH_PATH: os.pathsep.join(paths),
        PATCH_VARIABLE: json.dumps(dataclasses.asdict(job)),
    }


def training_environment(
    best: BestConfig, path: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    """The variables with which a training starts so that it runs with the settings of a file.

    Args:
        best: The file's content.
        path: Where it lies.
        environment: What the training has without it.
    """
    variables = best.config.environment
    if best.patch is not None:
        job = Job(target=best.patch, config_path=str(path.absolute()))
        variables |= hook_environment(job, environment)
    return variables


def job_of(text: str) -> Job:
    """The job in the variable's text."""
    found: dict[str, Any] = json.loads(text)
    target = found["target"]
    return Job(**{**found, "target": target and target_of(target)})
