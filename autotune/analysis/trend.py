"""Whether a loop gets slower, or faster, as it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autotune.measurement import counted_blocks
from autotune.study.records import TrialRecord

# Fewer blocks tell nothing of a trend.
_FEWEST_BLOCKS = 6
# A change of speed within a run that is worth telling, and how many of its standard errors it must
# be worth: runs of a machine that drifts change by 5 % in 3 s.
_WORTH_TELLING, _STANDARD_ERRORS = 0.15, 4.0


def change_within_runs(records: Sequence[TrialRecord]) -> float | None:
    """Throughput at the end of a run ÷ that at its start; None where it does not change.

    The logarithm of the rate of its blocks is taken for a straight line over their time, in each
    run. A change that is not seen in each of them is none.

    Args:
        records: Runs of one configuration.
    """
    lines = [line for record in records if (line := _line(record)) is not None]
    if not lines:
        return None
    changes = np.array([change for change, _ in lines])
    weights = np.array([1 / max(error, 1e-6) ** 2 for _, error in lines])
    change = float((changes * weights).sum() / weights.sum())
    error = 1 / math.sqrt(float(weights.sum()))
    clear = abs(change) > max(_STANDARD_ERRORS * error, math.log1p(_WORTH_TELLING))
    alike = bool((np.sign(changes) == np.sign(change)).all())
    return math.exp(change) if clear and alike else None


def _line(record: TrialRecord) -> tuple[float, float] | None:
    """The change of the logarithm of the rate over one run, and its standard error."""
    samples = [sample for sample in record.samples if sample.life_steps is None]
    # A first epoch unlike the later ones is told by itself.
    blocks = [block for block in counted_blocks(samples) if not block.interference]
    if len(blocks) < _FEWEST_BLOCKS:
        return None
    ends_s = np.cumsum([block.duration_s for block in blocks])
    middles_s = ends_s - np.array([block.duration_s for block in blocks]) / 2
    logs = np.log([block.units_per_s for block in blocks])
    places = (middles_s - middles_s.mean()) / ends_s[-1]
    squares = float((places**2).sum())
    slope = float((places * logs).sum() / squares)
    residuals = logs - logs.mean() - slope * places
    variance = float((residuals**2).sum()) / (len(blocks) - 2)
    return slope, math.sqrt(variance / squares)
