"""Whether forked trials tell of training: their speed-up against that of fresh processes."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from autotune.analysis.comparison import choose
from autotune.analysis.page_faults import page_fault_share
from autotune.config import ThroughputConfig
from autotune.intervals import TWO_SIDED_95, Ratio
from autotune.measurement import StartMode, counted_blocks, sustained_error
from autotune.study.records import TrialRecord

# Speed-ups this far apart are no noise: forked and fresh trials of loops for which forking is right
# agree within 3 %, and equal trials within 12 % over minutes on a shared machine (`confirmation`).
# Less than that costs no more than a candidate that is not quite the best.
_FAR_APART = 0.2
# Standard deviations of the logarithm of a forked trial's rate: what the machine does at that time,
# what is peculiar to the process, and noise of a second of steps, without workers and with some. As
# in `confirmation` and `belief`; of a trial that was disturbed throughout, the machine's part is
# the 12 % that equal trials on a shared machine were seen to vary by.
_DRIFT_SD, _DISTURBED_SD, _PROCESS_SD = 0.05, 0.12, 0.03
_NOISE_SD, _WORKERS_NOISE_SD = 0.02, 0.045
# How much memory a loop takes anew differs from process to process: fresh ones of one loop took
# 11,000 to 35,000 pages in a step (docs/allocator.md). Of what that costs, the standard deviation.
_FAULTS_VARY = 0.5
_FEWEST_ROUNDS = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A configuration whose speed-up in forked trials is not that in fresh processes."""

    config: ThroughputConfig
    forked: float
    fresh: Ratio

    def __str__(self) -> str:
        return (
            f"{self.config.summary} ran at {self.forked:.2f} times the baseline's rate in forked "
            f"trials, and at {self.fresh.ratio:.2f} times in fresh processes"
        )


def find_disagreement(
    records: Iterable[TrialRecord],
    runs: Mapping[ThroughputConfig, Sequence[TrialRecord]],
    baseline: ThroughputConfig,
) -> Disagreement | None:
    """A candidate whose speed-ups are far apart, by more than both may be off; None without one.

    One round of fresh processes does not tell: on a machine that others share, the same settings
    were seen to differ by a third from one process to the next.

    Args:
        records: The study's trials, for the forked ones.
        runs: Confirming runs in fresh processes, by configuration; the same rounds for all.
        baseline: Which configuration is the baseline.
    """
    forked = [
        record
        for record in records
        if record.phase.is_brief and record.start_mode is StartMode.FORK and record.measurement
    ]
    if baseline not in runs:
        return None
    for config in runs:
        ours, theirs = (
            _mean_log([record for record in forked if record.config == c])
            for c in (config, baseline)
        )
        if config == baseline or ours is None or theirs is None:
            continue
        if len(runs[config]) < _FEWEST_ROUNDS:
            continue
        log_ratio = ours[0] - theirs[0]
        rates = {c: [run.units_per_s for run in runs[c]] for c in (config, baseline)}
        fresh = choose(rates, baseline).speedup
        # Forks share the heap of the process that they come from: more of them tell no more.
        faults = sum(_faults_variance(runs[c]) for c in (config, baseline))
        apart = abs(log_ratio - math.log(fresh.ratio))
        variance = ours[1] + theirs[1] + faults
        half_width = math.hypot(
            TWO_SIDED_95 * math.sqrt(variance), math.log(fresh.high / fresh.ratio)
        )
        if apart > max(math.log1p(_FAR_APART), half_width):
            return Disagreement(config=config, forked=math.exp(log_ratio), fresh=fresh)
    return None


def _mean_log(trials: Sequence[TrialRecord]) -> tuple[float, float] | None:
    """The mean logarithm of the rates of some trials and its variance; None without any.

    Each counts by how sure it is: one that lived on what its loader held ready tells little.
    """
    if not trials:
        return None
    weights = [1 / _variance(trial) for trial in trials]
    logs = [math.log(trial.units_per_s) for trial in trials]
    mean = sum(w * log for w, log in zip(weights, logs, strict=True)) / sum(weights)
    return mean, 1 / sum(weights)


def _faults_variance(runs: Sequence[TrialRecord]) -> float:
    """Of the logarithm of a rate, by how much memory a process happens to take anew."""
    shares = [min(1.0, page_fault_share(run.samples)) for run in runs]
    return (_FAULTS_VARY * statistics.mean(shares)) ** 2


def _variance(trial: TrialRecord) -> float:
    """Variance of the logarithm of a trial's rate."""
    found = trial.measurement
    assert found is not None
    is_disturbed = found.num_disturbed == found.num_blocks
    drift_sd = _DISTURBED_SD if is_disturbed else _DRIFT_SD
    noise_sd = _WORKERS_NOISE_SD if trial.config.num_workers else _NOISE_SD
    noise = noise_sd**2 / found.measured_s
    blocks = counted_blocks(trial.samples)
    logs = [math.log(block.units_per_s) for block in blocks]
    if len(logs) > 1:
        noise = max(noise, statistics.variance(logs) / len(logs))
    error = sustained_error(blocks, trial.config.num_workers)
    return drift_sd**2 + _PROCESS_SD**2 + noise + error**2
