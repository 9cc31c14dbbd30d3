"""Whether settings that were found once still hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from autotune.analysis.comparison import choose_by_runs
from autotune.analysis.result import longer_epoch
from autotune.best_config import BestConfig
from autotune.config import ThroughputConfig
from autotune.intervals import Ratio
from autotune.measurement import Failure
from autotune.requirements import Objective
from autotune.study.records import TrialRecord


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a settings file holds.

    Attributes:
        holds: Whether it does.
        sentence: That, and why.
        speedup: Throughput of its settings ÷ that of the script's own, now; None where these are
            the same, or it was not measured.
    """

    holds: bool
    sentence: str
    speedup: Ratio | None


def judge(
    best: BestConfig,
    config: ThroughputConfig,
    *,
    baseline: ThroughputConfig,
    rival: ThroughputConfig | None,
    runs: Mapping[ThroughputConfig, Sequence[TrialRecord]],
    failures: Mapping[ThroughputConfig, Failure],
    differences: Sequence[str],
) -> Verdict:
    """What a paired comparison says of a settings file.

    It holds where its settings run, nothing that is known is surely faster, what it depends on is
    as it was in the tuning, and it brings what it states.

    Args:
        best: What the file holds.
        config: Its settings, as this training uses them.
        baseline: The script's own.
        rival: What the study thinks best, which may be the same; None where there is no study.
        runs: By configuration, its runs of the same rounds.
        failures: Why some cannot run.
        differences: What is not as it was in the tuning.
    """
    again = "tune again with `autotune run`"
    if config in failures:
        failure = failures[config]
        sentence = f"does not hold: its settings fail: {failure.cause}: {failure.message}"
        return Verdict(holds=False, sentence=f"{sentence}; {again}", speedup=None)
    speedup = ratio(runs, config, baseline) if config != baseline else None
    brings = "its settings are the script's own"
    if speedup is not None:
        brings = f"its settings reach {_told(speedup)} the throughput of the script's own"
    changed = f"; and it was tuned under other conditions ({'; '.join(differences)})"
    if not differences:
        changed = ""
    if rival is not None and rival != config and rival in runs:
        over = ratio(runs, rival, config)
        if over.significant and longer_epoch(runs[config], runs[rival]) is None:
            sentence = f"does not hold: {rival.summary} is {_told(over)} as fast{changed}"
            return Verdict(holds=False, sentence=f"{sentence}; {again}", speedup=speedup)
    if speedup is not None and _asks_for_speed(best) and ratio(runs, baseline, config).significant:
        sentence = f"does not hold: {brings}{changed}; {again}"
        return Verdict(holds=False, sentence=sentence, speedup=speedup)
    if differences:
        sentence = (
            f"may not hold any more: it was tuned under other conditions "
            f"({'; '.join(differences)}). As yet {brings}; {again}"
        )
        return Verdict(holds=False, sentence=sentence, speedup=speedup)
    stated = best.speedup
    if speedup is not None and stated.significant and speedup.high < stated.low:
        sentence = (
            f"does not bring what it states: {brings}, where it states {stated.ratio:.2f} times "
            f"({stated.low:.2f} to {stated.high:.2f}); {again}"
        )
        return Verdict(holds=False, sentence=sentence, speedup=speedup)
    known = ", and nothing that its study knows is faster" if rival is not None else ""
    return Verdict(holds=True, sentence=f"holds: {brings}{known}", speedup=speedup)


def ratio(
    runs: Mapping[ThroughputConfig, Sequence[TrialRecord]],
    config: ThroughputConfig,
    other: ThroughputConfig,
) -> Ratio:
    """Throughput of one configuration ÷ that of another, from runs of the same rounds."""
    return choose_by_runs({other: runs[other], config: runs[config]}, other).speedup


def _asks_for_speed(best: BestConfig) -> bool:
    """Whether the script's own settings would do for the file where they are faster."""
    wanted, own = best.requirements, best.baseline
    if wanted is None:
        return True
    taken = own.peak_memory_bytes + own.shared_memory_bytes
    return (
        wanted.objective is Objective.THROUGHPUT
        and wanted.allow(own.config)
        and (wanted.max_memory_bytes is None or taken <= wanted.max_memory_bytes)
    )


def _told(found: Ratio) -> str:
    return f"{found.ratio:.2f} times ({found.low:.2f} to {found.high:.2f})"
