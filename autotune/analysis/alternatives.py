"""The best settings under conditions: for each batch size, and for the limits that people have."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from autotune.analysis.comparison import choose_by_runs, complete_rounds
from autotune.analysis.estimates import Estimates
from autotune.analysis.memory_forecast import foresee_exhaustion
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.intervals import INDIFFERENCE, Ratio
from autotune.measurement import Measurement
from autotune.memory_order import needs_as_much
from autotune.requirements import Objective, Requirements
from autotune.space import preference
from autotune.study.records import Phase, TrialRecord, telling_failures


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The best configuration of one batch size.

    Attributes:
        config: The configuration.
        ratio: Its throughput ÷ that of the chosen one: as both were confirmed side by side, or else
            as is believed after the search.
        was_measured: Whether a trial of it ran; if not, the figure is what similar ones tell.
    """

    config: ThroughputConfig
    ratio: Ratio
    was_measured: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What a study tells of its space.

    Attributes:
        configs: The space, the baseline first.
        estimates: What is expected of each.
        records: The study's trials.
        impossible: Those that failed, and those that would, by what others ran out of.
    """

    configs: tuple[ThroughputConfig, ...]
    estimates: Estimates
    records: tuple[TrialRecord, ...]
    impossible: frozenset[ThroughputConfig]

    @classmethod
    def of(
        cls,
        configs: Sequence[ThroughputConfig],
        estimates: Estimates,
        records: Sequence[TrialRecord],
    ) -> Explored:
        """From the estimates and trials of a study."""
        telling = telling_failures(records)
        found = [
            (record.config, record.phase, record.failure.cause)
            for record in records
            if record.failure is not None and record.number in telling
        ]
        # What fails in a fresh process fails in training, whatever a forked trial did.
        fails = {config for config, phase, _ in found if phase is Phase.CONFIRM}
        exhausted = [
            (config, cause)
            for config, _, cause in found
            if cause.is_exhaustion and (config in fails or config not in estimates.measured)
        ]
        fails |= {
            config
            for config in set(configs) - estimates.measured
            if any(needs_as_much(config, *other) for other in exhausted)
        }
        return cls(
            configs=tuple(dict.fromkeys(configs)),
            estimates=estimates,
            records=tuple(records),
            impossible=estimates.failed | fails,
        )

    @property
    def baseline(self) -> ThroughputConfig:
        """The script's own settings."""
        return self.configs[0]


def by_batch_size(explored: Explored, chosen: ThroughputConfig) -> tuple[Alternative, ...]:
    """For each batch size of a space, what is expected to be fastest, the smallest batch first.

    Args:
        explored: The space.
        chosen: What ratios are to; of its own batch size it is the answer.
    """
    estimates = explored.estimates
    sizes: dict[int, list[ThroughputConfig]] = {}
    for config in explored.configs:
        if config not in explored.impossible:
            sizes.setdefault(config.batch_size, []).append(config)
    found = []
    for size in sorted(sizes):
        config = chosen if size == chosen.batch_size else _fastest(sizes[size], estimates, chosen)
        found.append(
            Alternative(
                config=config,
                ratio=_ratio(explored, config, chosen),
                was_measured=config in estimates.measured,
            )
        )
    return tuple(found)


def _ratio(explored: Explored, config: ThroughputConfig, chosen: ThroughputConfig) -> Ratio:
    both = [
        record
        for record in explored.records
        if record.phase is Phase.CONFIRM
        and record.config in (config, chosen)
        # Others may be at it just now.
        and (record.measurement or record.failure)
    ]
    runs = {} if config == chosen else complete_rounds(both, chosen)
    if config in runs:
        return choose_by_runs(runs, chosen).speedup
    return explored.estimates.ratio(config, chosen)


def best_within(explored: Explored, requirements: Requirements) -> ThroughputConfig:
    """The best of a space that keeps to some requirements.

    What a trial took of memory is known once it ran; of others, what lighter ones took is the
    least that they will. What is to be saved is known of those that ran only.

    Args:
        explored: The space.
        requirements: What is asked for.

    Raises:
        BadInputError: None does; the message says what there is.
    """
    configs, estimates, records = explored.configs, explored.estimates, explored.records
    baseline = explored.baseline
    found = [c for c in configs if requirements.allow(c) and c not in explored.impossible]
    if not found:
        raise BadInputError(_nothing_allowed(requirements, configs, explored.impossible))
    limit = requirements.max_memory_bytes
    if limit is not None:
        taken = [_memory_bytes(config, records) for config in found]
        found = [config for config in found if fits(config, records, limit)]
        if not found:
            measured = [num_bytes for num_bytes in taken if num_bytes is not None]
            known = f"; the least that was measured is {_mib(min(measured))}" if measured else ""
            raise BadInputError(
                f"no configuration with {requirements} is known to fit{known}: give more memory, "
                "or widen the axes and run `autotune run` again"
            )
    if requirements.objective is Objective.THROUGHPUT:
        return _fastest(found, estimates, baseline)
    costs = {
        config: cost
        for config in found
        if (cost := mean_cost(requirements.objective, config, records)) is not None
    }
    if not costs:
        raise BadInputError(
            f"no trial of this study tells the {requirements.objective.label}"
            + (
                ": this machine does not count it"
                if requirements.objective is Objective.ENERGY
                else ""
            )
        )
    least_cost = min(costs.values())
    equals = [c for c, cost in costs.items() if cost <= least_cost * (1 + INDIFFERENCE / 2)]
    return min(equals, key=lambda config: preference(config, baseline))


def mean_cost(
    objective: Objective, config: ThroughputConfig, records: Sequence[TrialRecord]
) -> float | None:
    """What a sample costs with a configuration, the mean over its trials; None if unknown."""
    found = [
        cost
        for record in records
        if record.config == config
        and record.measurement is not None
        and (cost := cost_per_sample(objective, record.measurement)) is not None
    ]
    return sum(found) / len(found) if found else None


def cost_per_sample(objective: Objective, measurement: Measurement) -> float | None:
    """What a sample took of what is to be saved: seconds, CPU seconds, or joules."""
    if objective is Objective.THROUGHPUT:
        return 1 / measurement.samples_per_s
    if objective is Objective.CPU:
        return measurement.cpu_s_per_sample or None
    return measurement.joules_per_sample or None


def _fastest(
    configs: Sequence[ThroughputConfig], estimates: Estimates, baseline: ThroughputConfig
) -> ThroughputConfig:
    """The fastest of some, or the preferred one of those equally fast."""
    rates = {config: estimates.units_per_s(config) for config in configs}
    least = max(rates.values()) / (1 + INDIFFERENCE / 2)
    equals = [config for config, rate in rates.items() if rate >= least]
    # Of equals, one that ran is surer to run.
    return min(
        equals, key=lambda config: (config not in estimates.measured, preference(config, baseline))
    )


def _memory_bytes(config: ThroughputConfig, records: Sequence[TrialRecord]) -> int | None:
    """The most that trials of a configuration took; None where none ran."""
    return max(
        (
            record.measurement.peak_memory_bytes + record.measurement.shared_memory_bytes
            for record in records
            if record.config == config and record.measurement is not None
        ),
        default=None,
    )


def fits(config: ThroughputConfig, records: Sequence[TrialRecord], limit: int) -> bool:
    """Whether a configuration keeps to so many bytes of memory, as far as trials tell."""
    measured = _memory_bytes(config, records)
    if measured is not None:
        return measured <= limit
    failure = foresee_exhaustion(
        config,
        records,
        memory_left_bytes=limit,
        shared_memory_left_bytes=None,
        gpu_headroom=0.0,
    )
    return failure is None


def _nothing_allowed(
    requirements: Requirements,
    configs: Sequence[ThroughputConfig],
    failed: Collection[ThroughputConfig],
) -> str:
    sizes = ", ".join(map(str, sorted({config.batch_size for config in configs})))
    workers = ", ".join(map(str, sorted({config.num_workers for config in configs})))
    if any(requirements.allow(config) for config in failed):
        return f"every configuration with {requirements} failed: see `autotune show`"
    return (
        f"the study has no configuration with {requirements}: its batch sizes are {sizes}, its "
        f"numbers of workers {workers}. Name others with `autotune run --axis` first"
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
