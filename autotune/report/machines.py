"""The studies of a storage beside each other: kinds of machines, and the machines of each kind."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import optuna
from rich.table import Table

from autotune.config import ThroughputConfig
from autotune.measurement import figure
from autotune.report.study_view import Facts
from autotune.study.records import Phase, TrialRecord, read_records
from autotune.study.store import SCHEMA_VERSION, find_studies
from autotune.system.machine import Machine
from autotune.validation import validate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MachineView:
    """What one machine did for a study.

    Attributes:
        host: Its name.
        num_trials: How many trials it ran.
        running: The configuration of which it runs a trial now; None where it runs none.
        baseline: Units per second of the baseline on it, the median of its runs; None without any.
        speedup: The chosen settings' throughput ÷ the baseline's in the rounds that it confirmed,
            the median; None where it confirmed none.
    """

    host: str
    num_trials: int
    running: str | None
    baseline: float | None
    speedup: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KindView:
    """A study, which is of one command and one kind of machine.

    Attributes:
        study: Its name.
        machine: One of the kind; None where no run has introduced itself yet.
        command: What is tuned.
        unit: What is counted.
        chosen: The settings; None where there is no answer yet.
        speedup: Their throughput ÷ the baseline's; None without an answer.
        low: The lower end of its 95 % interval.
        high: The upper end.
        machines: Those that ran trials.
    """

    study: str
    machine: Machine | None
    command: str
    unit: str
    chosen: ThroughputConfig | None
    speedup: float | None
    low: float | None
    high: float | None
    machines: tuple[MachineView, ...]

    @classmethod
    def of(cls, study: optuna.Study) -> KindView:
        """The view of a stored study, finished or not.

        Raises:
            BadInputError: It is damaged.
        """
        records = read_records(study)
        facts = validate(Facts, dict(study.user_attrs), source=f"study {study.study_name}")
        best = facts.result.best if facts.result else None
        hosts = dict.fromkeys(record.host for record in records if record.host is not None)
        return cls(
            study=study.study_name,
            machine=facts.machine,
            command=" ".join(facts.command),
            unit=next((record.unit for record in records if record.unit), "samples"),
            chosen=best.config if best else None,
            speedup=best.speedup.ratio if best else None,
            low=best.speedup.low if best else None,
            high=best.speedup.high if best else None,
            machines=tuple(
                _machine_view(
                    host, [r for r in records if r.host == host], best.config if best else None
                )
                for host in hosts
            ),
        )


def _machine_view(
    host: str, records: Sequence[TrialRecord], chosen: ThroughputConfig | None
) -> MachineView:
    baselines = [r.units_per_s for r in records if r.phase is Phase.BASELINE and r.measurement]
    baseline = next((r.config for r in records if r.phase is Phase.BASELINE), None)
    rounds: dict[int | None, dict[ThroughputConfig, float]] = {}
    for record in records:
        if record.phase is Phase.CONFIRM and record.measurement is not None:
            rounds.setdefault(record.round_number, {})[record.config] = record.units_per_s
    ratios = [
        found[chosen] / found[baseline]
        for found in rounds.values()
        if chosen in found and baseline in found
    ]
    running = [r for r in records if not r.has_ended]
    return MachineView(
        host=host,
        num_trials=len(records),
        running=running[-1].config.summary if running else None,
        baseline=statistics.median(baselines) if baselines else None,
        speedup=statistics.median(ratios) if ratios else None,
    )


def read_kinds(url: str) -> tuple[KindView, ...]:
    """All studies of a storage, less those that something else made.

    Raises:
        BadInputError: There is no such storage, or a study is damaged.
    """
    studies = find_studies(url)
    return tuple(
        KindView.of(study)
        for study in studies
        if study.user_attrs.get("schema_version") == SCHEMA_VERSION
    )


def as_dicts(kinds: Sequence[KindView]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [dataclasses.asdict(kind) for kind in kinds]


def table_of(kinds: Sequence[KindView]) -> Table:
    """A row for each machine, and one above them for its kind."""
    table = Table(title="kinds of machines, and the machines of each", title_justify="left")
    for heading in ("study", "machine", "trials", "baseline", "speed-up", "settings"):
        table.add_column(heading, justify="right" if heading in ("trials", "baseline") else "left")
    for kind in kinds:
        numbers = [view.baseline for view in kind.machines if view.baseline]
        middle = statistics.median(numbers) if numbers else None
        table.add_row(
            kind.study,
            str(kind.machine or ""),
            str(sum(view.num_trials for view in kind.machines)),
            "" if middle is None else f"{figure(middle)} {kind.unit}/s",
            "no answer yet"
            if kind.speedup is None
            else f"{kind.speedup:.2f}x ({kind.low:.2f} to {kind.high:.2f})",
            kind.chosen.summary if kind.chosen else "",
        )
        for view in kind.machines:
            table.add_row(
                "",
                f"  {view.host}",
                str(view.num_trials),
                ""
                if view.baseline is None or middle is None
                else f"{100 * view.baseline / middle:.0f} %",
                "" if view.speedup is None else f"{view.speedup:.2f}x",
                f"running: {view.running}" if view.running else "",
                end_section=view is kind.machines[-1],
            )
    return table
