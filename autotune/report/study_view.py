"""A study as it is told to people: what was found, and what each setting did."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from autotune.analysis.ablation import Effect, around, effects, find_changes
from autotune.analysis.alternatives import Explored
from autotune.analysis.estimates import Estimates
from autotune.analysis.result import Result
from autotune.axes import AxisValue
from autotune.config import ThroughputConfig
from autotune.space import Space
from autotune.study.records import TrialRecord, read_records, without_forked
from autotune.study.relative import as_here
from autotune.study.storage import shown_url, storage_url
from autotune.study.store import earlier_records, find_study
from autotune.study.training_length import TrainingLength
from autotune.system.machine import Machine
from autotune.validation import validate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is stored of a study as a whole.

    A run that has just begun stores these one by one; they are complete when `searched_axes` is
    there.

    Attributes:
        command: What is tuned.
        machine: Where.
        baseline: The settings without tuning.
        script_default: Those that the script names itself, and None for those that it does not.
        searched_axes: Values of each axis, widened ones included.
        effective_batch_size: Samples per optimizer step that the script asks for.
        versions: Of the packages that matter.
        training: How long the whole training is, where its user said so.
        gpu_headroom: Share of a GPU's memory that its settings had to leave free.
        forks_mislead: Whether forked trials were found not to be like training.
        result: The answer; None where the run did not come to one.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "ignore"}

    command: tuple[str, ...] = ()
    machine: Machine | None = None
    baseline: ThroughputConfig | None = None
    script_default: Mapping[str, AxisValue | None] = dataclasses.field(default_factory=dict)
    searched_axes: Mapping[str, tuple[AxisValue, ...]] | None = None
    effective_batch_size: int | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    training: TrainingLength | None = None
    forks_mislead: bool = False
    gpu_headroom: float | None = None
    result: Result | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """What a storage holds of one study, finished or not.

    Attributes:
        name: The study's.
        storage: Where it is, as it may be shown.
        facts: What is stored of it as a whole.
        records: Its trials.
        space: What is searched; None where the command has not introduced itself yet.
        best: The chosen settings, or the best beside the baseline so far; None where nothing ran.
        earlier: The trials of an earlier study of the same command, from which its search started.
        estimates: What is expected of each configuration; None where nothing ran.
        effects: What each setting does, the one that held training back most first.
    """

    name: str
    storage: str
    facts: Facts
    records: tuple[TrialRecord, ...]
    earlier: tuple[TrialRecord, ...] = ()
    space: Space | None = None
    best: ThroughputConfig | None = None
    estimates: Estimates | None = None
    effects: tuple[Effect, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        storage: str,
        facts: Mapping[str, Any],
        records: Sequence[TrialRecord],
        earlier: Sequence[TrialRecord] = (),
    ) -> StudyView:
        """The view of a study with these facts and trials.

        Raises:
            BadInputError: The facts are damaged.
        """
        found = validate(Facts, dict(facts), source=f"study {name}")
        view = cls(
            name=name,
            storage=storage,
            facts=found,
            records=tuple(records),
            earlier=tuple(earlier),
        )
        if found.searched_axes is None or found.baseline is None or found.machine is None:
            return view
        baseline, usable_cores = found.baseline, found.machine.usable_cores
        space = Space(
            axes=dict(found.searched_axes), effective_batch_size=found.effective_batch_size
        )
        view = dataclasses.replace(view, space=space)
        best = _best(view)
        if best is None:
            return view
        estimates = Estimates.of(
            (baseline, *space.configurations(baseline), *around(space, baseline, best)),
            view.trusted_records,
            usable_cores=usable_cores,
            earlier=view.earlier,
        )
        assert estimates is not None
        view = dataclasses.replace(view, best=best, estimates=estimates)
        if best == baseline:
            # Nothing else ran: there is nothing to compare.
            return view
        changes = find_changes(space, baseline, best, estimates)
        return dataclasses.replace(view, effects=tuple(effects(changes, baseline, best, estimates)))

    @property
    def baseline(self) -> ThroughputConfig | None:
        """The settings without tuning; None where the command has not introduced itself yet."""
        return self.facts.baseline if self.space else None

    @property
    def explored(self) -> Explored | None:
        """What is known of its space; None where nothing ran."""
        if self.space is None or self.baseline is None or self.estimates is None:
            return None
        return Explored.of(
            (self.baseline, *self.space.configurations(self.baseline)),
            self.estimates,
            self.trusted_records,
        )

    @property
    def result(self) -> Result | None:
        """The answer; None where the run did not come to one."""
        return self.facts.result

    @property
    def trusted_records(self) -> tuple[TrialRecord, ...]:
        """The trials that tell how fast training is."""
        return without_forked(self.records) if self.facts.forks_mislead else self.records

    @property
    def machine(self) -> Machine | None:
        """Where it was measured."""
        return self.facts.machine

    @property
    def training(self) -> TrainingLength | None:
        """How long the whole training is, where its user said so."""
        return self.facts.training

    @property
    def unit(self) -> str:
        """What is counted."""
        return next((record.unit for record in self.records if record.unit), "samples")

    def steps_per_epoch(self, config: ThroughputConfig) -> int | None:
        """Micro-steps in an epoch with a configuration; None where the loader does not tell."""
        found = (record.measurement for record in self.records if record.config == config)
        return next((m.steps_per_epoch for m in found if m is not None), None)


def open_view(storage: str, name: str | None = None) -> StudyView:
    """The view of a stored study; of the one that was made last where none is named.

    Raises:
        BadInputError: There is no such storage or study.
    """
    url = storage_url(storage)
    study = find_study(url, name)
    records = read_records(study)
    machine = study.user_attrs.get("machine")
    if isinstance(machine, dict):
        # Where several machines search together, all figures are as on the one that was last.
        records = as_here(records, str(machine.get("hostname")))
    return StudyView.of(
        study.study_name,
        shown_url(url),
        study.user_attrs,
        records,
        earlier_records(study),
    )


def _best(view: StudyView) -> ThroughputConfig | None:
    if view.result is not None and view.result.best.speedup.significant:
        return view.result.best.config
    assert view.space is not None and view.baseline is not None and view.machine is not None
    configs = (view.baseline, *view.space.configurations(view.baseline))
    estimates = Estimates.of(
        configs,
        view.trusted_records,
        usable_cores=view.machine.usable_cores,
        earlier=view.earlier,
    )
    if estimates is None:
        return None
    others = estimates.measured.intersection(configs) - {view.baseline}
    return max(others, key=estimates.units_per_s, default=view.baseline)
