"""What is stored of a trial, and how it is read back."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from datetime import datetime

import optuna
from optuna.trial import FrozenTrial, TrialState

from autotune.blocks import Sample
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, Measurement, StartMode
from autotune.study.storage import reading
from autotune.validation import validate

# No count of bytes, samples or seconds comes near it.
_TOO_LARGE = 2**62


class Phase(enum.StrEnum):
    """Why a trial was run. The values are stored in studies: never rename one."""

    BASELINE = "baseline"
    PROBE = "probe"
    SEARCH = "search"
    EXPLAIN = "explain"
    CONFIRM = "confirm"

    @property
    def is_brief(self) -> bool:
        """Whether its trials are as brief as the search's, and started alike."""
        return self in (Phase.PROBE, Phase.SEARCH, Phase.EXPLAIN)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial of a study, as it was stored.

    Attributes:
        number: Optuna's number of the trial.
        phase: Why it was run.
        config: The configuration that ran.
        start_mode: How it was started; None where the run was killed meanwhile.
        measurement: Its figures; None where it failed or was interrupted.
        failure: Why there are none; None for a trial that still runs.
        samples: What was measured, block by block.
        start_up_s: From the request to the first batch handed to the loop.
        duration_s: Seconds in which it was started or ran, or until it failed; None where it failed
            beside others.
        started_at: When it was stored that the trial begins.
        round_number: Round of the confirmation.
        unit: Name of the script's own unit, None where samples count.
        host: Name of the machine that ran it; None where the run was killed before it said so.
    """

    number: int
    phase: Phase
    config: ThroughputConfig
    start_mode: StartMode | None = None
    measurement: Measurement | None = None
    failure: Failure | None = None
    samples: tuple[Sample, ...] = ()
    start_up_s: float | None = None
    duration_s: float | None = None
    started_at: datetime | None = None
    round_number: int | None = None
    unit: str | None = None
    host: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether there is something to learn from it."""
        return self.measurement is not None or self.failure is not None

    @property
    def units_per_s(self) -> float:
        """The objective; 0 where there is no measurement."""
        return self.measurement.units_per_s if self.measurement else 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a trial that succeeded leaves to be stored."""

    measurement: Measurement
    samples: Sequence[Sample]
    start_mode: StartMode
    start_up_s: float
    duration_s: float
    unit: str | None


def telling_failures(records: Iterable[TrialRecord]) -> frozenset[int]:
    """The numbers of those trials that failed for their settings, as far as can be told.

    An interrupted run says nothing of them, nor does the first kill of a configuration: whose
    signal it was is unknown. A second one is believed.
    """
    killed: set[ThroughputConfig] = set()
    found = set()
    for record in records:
        if record.failure is None or record.failure.cause is FailureCause.INTERRUPTED:
            continue
        if record.failure.cause is FailureCause.KILLED and record.config not in killed:
            killed.add(record.config)
            continue
        found.add(record.number)
    return frozenset(found)


def _check_figures(measurement: Measurement, samples: Sequence[Sample]) -> None:
    """What is reckoned with must be numbers to reckon with.

    Raises:
        ValueError: It is not.
    """
    if not any(sample.blocks for sample in samples):
        raise ValueError("it has figures, and no blocks that they come from")
    figures = {**dataclasses.asdict(measurement), "at_s": max(s.at_s for s in samples)}
    for name, value in figures.items():
        if value is not None and not 0 <= value < _TOO_LARGE:
            raise ValueError(f"{name} is {value}")
    if not measurement.units_per_s or not measurement.measured_s:
        raise ValueError("its throughput is 0")


def read_records(study: optuna.Study) -> tuple[TrialRecord, ...]:
    """All trials of a study, by number."""
    return tuple(map(read_trial, stored_trials(study)))


def stored_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials of a study, by number.

    Raises:
        BadInputError: They are damaged.
    """
    with reading(f"study {study.study_name}"):
        return study.get_trials(deepcopy=False)


def read_trial(trial: FrozenTrial) -> TrialRecord:
    """A trial as it was stored; what it lacks is as a killed run leaves it.

    Raises:
        BadInputError: It is damaged.
    """
    with reading(f"trial {trial.number}"):
        return _read_trial(trial)


def _read_trial(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    measurement = failure = None
    if trial.state == TrialState.COMPLETE:
        measurement = validate(
            Measurement, attributes.get("measurement", {}), source=f"trial {trial.number}"
        )
    elif trial.state == TrialState.FAIL:
        failure = Failure(
            cause=FailureCause(attributes.get("cause", FailureCause.INTERRUPTED)),
            message=attributes.get("message", ""),
            output=attributes.get("output", ""),
            setting=attributes.get("setting"),
        )
    mode = attributes.get("start_mode")
    samples = tuple(
        validate(Sample, raw, source=f"trial {trial.number}")
        for raw in attributes.get("raw_samples", ())
    )
    if measurement is not None:
        _check_figures(measurement, samples)
    return TrialRecord(
        number=trial.number,
        phase=Phase(attributes.get("phase", Phase.SEARCH)),
        config=ThroughputConfig(**attributes.get("config", {"batch_size": 1})),
        start_mode=StartMode(mode) if mode else None,
        measurement=measurement,
        failure=failure,
        samples=samples,
        start_up_s=attributes.get("start_up_s"),
        duration_s=attributes.get("duration_s"),
        started_at=trial.datetime_start,
        round_number=attributes.get("round_number"),
        unit=attributes.get("unit"),
        host=_host_of(attributes.get("coordinator")),
    )


def _host_of(coordinator: object) -> str | None:
    host = coordinator.get("host") if isinstance(coordinator, dict) else None
    return host if isinstance(host, str) else None


def without_forked(records: Iterable[TrialRecord]) -> tuple[TrialRecord, ...]:
    """The trials without the figures of forked ones; why one failed still counts."""
    return tuple(
        record
        for record in records
        if record.start_mode is not StartMode.FORK or record.measurement is None
    )
