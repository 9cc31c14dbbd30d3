"""Keras on torch is measured by the two calls around its loader."""

import dataclasses
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from autotune.measurement import StartMode

# Not imported here: it takes its backend from the environment.
pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed")

EXAMPLE = Path(__file__).parents[3] / "examples" / "keras_fit.py"


def test_fit_is_measured_and_forked(start_runner):
    runner = start_runner((sys.executable, str(EXAMPLE), "--waves", "256"))
    with runner.start_default() as trial:
        assert trial.facts.steps_per_epoch == 8
        assert trial.facts.fixed == {}
    changed = dataclasses.replace(runner.introduction.default, batch_size=64, num_workers=1)
    changed = dataclasses.replace(changed, persistent_workers=True, prefetch_factor=2)
    with runner.start(changed, StartMode.FORK) as trial:
        assert trial.mode is StartMode.FORK, runner.fresh_reason
        assert trial.facts.steps_per_epoch == 4
