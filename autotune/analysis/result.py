"""The answer of a run: what is written to `best_config.yaml`, and how it was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from autotune.analysis.bottleneck import Bottleneck
from autotune.analysis.comparison import Choice
from autotune.analysis.knowledge import Knowledge
from autotune.analysis.stragglers import Straggler
from autotune.best_config import (
    BaselinePerformance,
    BestConfig,
    MachineRecord,
    Performance,
    Speedup,
    StudyRecord,
    WorkloadRecord,
)
from autotune.config import ThroughputConfig
from autotune.intervals import INDIFFERENCE, Interval
from autotune.measurement import StartMode, figure
from autotune.patch_target import PatchTarget
from autotune.requirements import Requirements
from autotune.study.definition import StudyDefinition
from autotune.study.records import Phase, TrialRecord
from autotune.study.storage import reading
from autotune.study.store import StudyStore
from autotune.system.machine import this_machine
from autotune.validation import validate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForkDifference:
    """A configuration whose forked trial lies outside what one more fresh run would reach.

    Rates are in units per second; the fresh ones decide.
    """

    config: ThroughputConfig
    forked: float
    fresh: float
    fresh_low: float
    fresh_high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """A configuration that was not chosen: its throughput ÷ that of the chosen one.

    The interval is what is believed after the search: runs of similar configurations count, too.
    """

    config: ThroughputConfig
    ratio: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UnconfirmedGain:
    """A gain that the search measured, and that no fresh process showed.

    Attributes:
        config: The fastest configuration of the search.
        ratio: Its throughput ÷ the baseline's, both in short trials.
        reason: Why it was not confirmed.
    """

    config: ThroughputConfig
    ratio: float
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a run.

    Attributes:
        best: What is written to `best_config.yaml`.
        probability: That the settings written are within 2 % of the fastest of the space.
        runners_up: The next best, fastest first.
        widened: Axes to which values were added, because the best lay at their end.
        tuning_s: What this run took.
        num_configurations: Configurations in the space.
        num_measured: Of these, measured.
        num_pruned: Of these, pruned by what others showed.
        num_rounds: Rounds of the confirmation.
        num_failed: Trials that failed.
        num_disturbed: Blocks that something disturbed.
        num_disturbed_runs: Confirming runs of which every block was disturbed.
        disturbed_by: What disturbed them, the most frequent first.
        waited_s: Seconds spent on waiting for a quiet machine.
        fork_differences: Where forked trials and fresh processes did not agree.
        baseline_bottleneck: What holds the baseline back; None where it was not probed.
        bottleneck: The same of the chosen configuration.
        baseline_straggler: A rank that holds the others back with the baseline's settings.
        straggler: The same with the chosen ones.
        unsteady: Whether most runs of the chosen configuration were (see `spread`).
        config_path: The settings file that the measured loop loads in training, if it does.
        start_mode: How searching trials were started.
        fresh_reason: Why not by forking, None if they were.
        complete: Whether nothing was left to search.
        unconfirmed: What the search measured, where nothing could be confirmed beside the baseline.
        longer_epoch: Where settings with a higher throughput make an epoch longer, so that they are
            no gain: by which factor.
        baseline_change: Where the baseline changes its speed within a run: see `trend`.
        change: The same of the chosen configuration.
    """

    best: BestConfig
    probability: float
    runners_up: tuple[RunnerUp, ...]
    widened: tuple[str, ...]
    tuning_s: float
    num_configurations: int
    num_measured: int
    num_pruned: int
    num_rounds: int
    num_failed: int
    num_disturbed: int
    num_disturbed_runs: int
    disturbed_by: tuple[str, ...]
    waited_s: float
    fork_differences: tuple[ForkDifference, ...]
    baseline_bottleneck: Bottleneck | None
    bottleneck: Bottleneck | None
    unsteady: bool
    config_path: str | None
    start_mode: StartMode
    fresh_reason: str | None
    complete: bool
    unconfirmed: UnconfirmedGain | None = None
    longer_epoch: float | None = None
    baseline_change: float | None = None
    change: float | None = None
    baseline_straggler: Straggler | None = None
    straggler: Straggler | None = None

    @property
    def pays_after_steps(self) -> float | None:
        """Optimizer steps after which the tuning has paid for itself; None where it gained nothing.

        Each saves what its samples took with the baseline's settings, less what they take now.
        """
        before, after = self.best.baseline, self.best.expected
        if not self.best.speedup.significant or after.samples_per_s <= before.samples_per_s:
            return None
        saved_s = 1 / before.samples_per_s - 1 / after.samples_per_s
        samples = after.samples_per_update or self.best.config.effective_batch_size
        return self.tuning_s / (saved_s * samples)


def make_best_config(
    choice: Choice,
    runs: Mapping[ThroughputConfig, Sequence[TrialRecord]],
    *,
    baseline: ThroughputConfig,
    definition: StudyDefinition,
    storage: str,
    store: StudyStore,
    patch: PatchTarget | None = None,
    chosen: ThroughputConfig | None = None,
    versions: Mapping[str, str] = MappingProxyType({}),
    requirements: Requirements | None = None,
) -> BestConfig:
    """The content of `best_config.yaml`.

    Args:
        choice: The outcome of the confirmation.
        runs: The confirming runs behind it, by configuration.
        baseline: Which configuration is the baseline.
        definition: What was asked for.
        storage: URL of the storage, as it may be shown.
        store: The study.
        patch: What was tuned in a script that does not call autotune.
        versions: Those that the runs had, where the study may have had others.
        chosen: The settings; None for the best, or the baseline's where that is no gain.
        requirements: What they were chosen by; None for throughput alone.
    """
    ratio = choice.speedup
    significant = ratio.significant and longer_epoch(runs[baseline], runs[choice.best]) is None
    if chosen is None:
        chosen = choice.best if significant else baseline
    with reading(f"study {store.name}"):
        size = WorkloadRecord(**store.facts.get("workload_size", {}))
    return BestConfig(
        config=chosen,
        expected=_performance(runs[chosen], choice.rates[chosen]),
        baseline=BaselinePerformance(
            **dataclasses.asdict(_performance(runs[baseline], choice.rates[baseline])),
            config=baseline,
        ),
        speedup=Speedup(ratio=ratio.ratio, low=ratio.low, high=ratio.high, significant=significant),
        machine=MachineRecord.of(this_machine()),
        study=StudyRecord(
            storage=storage,
            name=store.name,
            trial_numbers=tuple(
                record.number for config in (baseline, choice.best) for record in runs[config]
            ),
            command=definition.command_line,
            date=datetime.now().astimezone().isoformat(timespec="seconds"),
            versions={**store.facts["versions"], **versions},
        ),
        workload=size,
        requirements=requirements,
        patch=patch,
    )


def longer_epoch(baseline: Sequence[TrialRecord], chosen: Sequence[TrialRecord]) -> float | None:
    """An epoch's length ÷ that with the baseline's settings, where these settings are no gain.

    They are none where they seem to bring more samples per second, and yet make an epoch of the
    same samples longer: something is counted wrongly. None where that is not so, or not known: an
    epoch of a fixed number of steps holds more samples with a larger batch.
    """
    before, after = _epoch(baseline), _epoch(chosen)
    if before is None or after is None or before[1] != after[1]:
        return None
    ratio = after[0] / before[0]
    return ratio if ratio > 1 + INDIFFERENCE else None


def _epoch(records: Sequence[TrialRecord]) -> tuple[float, int] | None:
    """Seconds that an epoch takes, the mean over some runs, and its samples."""
    found = [record.measurement for record in records if record.measurement is not None]
    lengths_s = [m.steps_per_epoch * m.seconds_per_step for m in found if m.steps_per_epoch]
    if not lengths_s or found[0].samples_per_epoch is None:
        return None
    return sum(lengths_s) / len(lengths_s), found[0].samples_per_epoch


def fork_differences(
    choice: Choice, records: Sequence[TrialRecord], configs: Iterable[ThroughputConfig]
) -> tuple[ForkDifference, ...]:
    """Of some configurations, those whose forked and fresh trials do not agree."""
    found = []
    for config in dict.fromkeys(configs):
        forked = [
            record.units_per_s
            for record in records
            if record.config == config
            and record.measurement is not None
            and record.start_mode is StartMode.FORK
        ]
        fresh = choice.rates[config]
        if forked and not fresh.low <= forked[-1] <= fresh.high:
            found.append(
                ForkDifference(
                    config=config,
                    forked=forked[-1],
                    fresh=fresh.mean,
                    fresh_low=fresh.low,
                    fresh_high=fresh.high,
                )
            )
    return tuple(found)


def unconfirmed_gain(
    records: Sequence[TrialRecord], baseline: ThroughputConfig
) -> UnconfirmedGain | None:
    """The largest gain that the search measured; None where it measured none worth having.

    Args:
        records: Of a study in which nothing was confirmed beside the baseline.
        baseline: Which configuration is the baseline.
    """
    measured = Knowledge.of(records).measured
    config = max(measured, key=lambda config: measured[config], default=baseline)
    if not measured.get(baseline) or measured[config] <= (1 + INDIFFERENCE) * measured[baseline]:
        return None
    failures = [
        record.failure
        for record in records
        if record.config == config and record.phase is Phase.CONFIRM and record.failure is not None
    ]
    reason = "there was no time to run it in a fresh process"
    if failures:
        reason = f"in a fresh process it failed: {failures[-1].cause}: {failures[-1].message}"
    return UnconfirmedGain(
        config=config, ratio=measured[config] / measured[baseline], reason=reason
    )


def stored_result(store: StudyStore) -> Result | None:
    """The result of an earlier run that left nothing to do, None where something is left."""
    stored = store.facts.get("result")
    if not stored:
        return None
    result = validate(Result, stored, source=f"study {store.name}")
    return result if result.complete else None


def best_so_far(records: Sequence[TrialRecord]) -> str | None:
    """The fastest configuration of an unfinished run on one line, None before there is one."""
    measured = Knowledge.of(records).measured
    best = max(measured, key=lambda config: measured[config], default=None)
    if best is None or not measured[best]:
        return None
    unit = next((record.unit for record in records if record.unit), "samples")
    return f"{best.summary} ({figure(measured[best])} {unit}/s, not confirmed)"


def _performance(records: Sequence[TrialRecord], rate: Interval) -> Performance:
    """The figures of some runs of one configuration, averaged; times follow from the mean rate."""
    found = [record.measurement for record in records if record.measurement is not None]
    count = len(found)
    waiting = [m.wait_cpu_share for m in found if m.wait_cpu_share is not None]
    joules = [m.joules_per_sample for m in found if m.joules_per_sample is not None]
    gpu_joules = [m.gpu_joules_per_sample for m in found if m.gpu_joules_per_sample is not None]
    gpu_used = [m.gpu_utilisation for m in found if m.gpu_utilisation is not None]
    # Where the script counts units, the interval is of these: per sample the ratio is the same.
    mean_units_per_s = sum(m.units_per_s for m in found) / count
    samples_per_unit = sum(m.samples_per_s for m in found) / count / mean_units_per_s
    samples_per_s = rate.mean * samples_per_unit
    # Batches are smaller than asked for where an epoch ends with what is left.
    batch_size = sum(m.seconds_per_step * m.samples_per_s for m in found) / count
    steps_per_update = sum(m.seconds_per_optimizer_step / m.seconds_per_step for m in found) / count
    updates = [m.samples_per_update for m in found if m.samples_per_update is not None]
    return Performance(
        unit=records[0].unit or "samples",
        units_per_s=rate.mean if records[0].unit else None,
        samples_per_s=samples_per_s,
        samples_per_s_low=rate.low * samples_per_unit,
        samples_per_s_high=rate.high * samples_per_unit,
        seconds_per_step=batch_size / samples_per_s,
        seconds_per_optimizer_step=steps_per_update * batch_size / samples_per_s,
        samples_per_update=sum(updates) / len(updates) if updates else None,
        cpu_utilisation=sum(m.cpu_utilisation for m in found) / count,
        cpu_s_per_sample=sum(m.cpu_s_per_sample for m in found) / count,
        data_wait_share=sum(m.data_wait_share for m in found) / count,
        peak_memory_bytes=max(m.peak_memory_bytes for m in found),
        shared_memory_bytes=max(m.shared_memory_bytes for m in found),
        device_memory_bytes=max(
            (m.device_memory_bytes for m in found if m.device_memory_bytes is not None),
            default=None,
        ),
        wait_cpu_share=sum(waiting) / len(waiting) if waiting else None,
        joules_per_sample=sum(joules) / len(joules) if joules else None,
        gpu_joules_per_sample=sum(gpu_joules) / len(gpu_joules) if gpu_joules else None,
        gpu_utilisation=sum(gpu_used) / len(gpu_used) if gpu_used else None,
    )
