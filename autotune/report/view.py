"""A study as it is told to people: what was found, and what each setting did."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.config import ThroughputConfig
from autotune.machine import Machine
from autotune.search.answer import Result
from autotune.search.effects import Effect, around, effects, find_changes
from autotune.search.estimates import Estimates
from autotune.search.records import TrialRecord, read_records
from autotune.search.storage import shown_url, storage_url
from autotune.search.study import find_study
from autotune.search.training_length import TrainingLength
from autotune.space import Space
from autotune.validation import validate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """What a storage holds of one study, finished or not.

    Attributes:
        name: The study's.
        storage: Where it is, as it may be shown.
        facts: What is stored of it as a whole.
        records: Its trials.
        space: What is searched; None where the command has not introduced itself yet.
        baseline: The settings without tuning; None as above.
        best: The chosen settings, or the best beside the baseline so far; None where nothing ran.
        result: The answer; None where the run did not come to one.
        estimates: What is believed of each configuration; None where nothing ran.
        effects: What each setting does, the one that held training back most first.
    """

    name: str
    storage: str
    facts: Mapping[str, Any]
    records: tuple[TrialRecord, ...]
    space: Space | None = None
    baseline: ThroughputConfig | None = None
    best: ThroughputConfig | None = None
    result: Result | None = None
    estimates: Estimates | None = None
    effects: tuple[Effect, ...] = ()

    @classmethod
    def of(
        cls, name: str, storage: str, facts: Mapping[str, Any], records: Sequence[TrialRecord]
    ) -> StudyView:
        """The view of a study with these facts and trials."""
        records = tuple(records)
        view = cls(name=name, storage=storage, facts=facts, records=records)
        # A run that has just begun stores its facts one by one; these are complete with the last.
        if "searched_axes" not in facts:
            return view
        baseline = ThroughputConfig(**facts["baseline"])
        space = Space(
            axes={axis: tuple(values) for axis, values in facts["searched_axes"].items()},
            effective_batch_size=facts.get("effective_batch_size"),
        )
        result = None
        if facts.get("result"):
            result = validate(Result, facts["result"], source=f"study {name}")
        view = dataclasses.replace(view, space=space, baseline=baseline, result=result)
        best = _best(view)
        if best is None:
            return view
        estimates = Estimates.of(
            (baseline, *space.configurations(baseline), *around(space, baseline, best)),
            records,
            usable_cores=facts["machine"]["usable_cores"],
        )
        assert estimates is not None
        view = dataclasses.replace(view, best=best, estimates=estimates)
        if best == baseline:
            # Nothing else ran: there is nothing to compare.
            return view
        changes = find_changes(space, baseline, best, estimates)
        found = effects(changes, baseline, best, estimates)
        return dataclasses.replace(view, effects=tuple(found))

    @property
    def unit(self) -> str:
        """What is counted."""
        return next((record.unit for record in self.records if record.unit), "samples")

    @property
    def machine(self) -> Machine | None:
        """Where it was measured."""
        stored = self.facts.get("machine")
        return validate(Machine, stored, source=f"study {self.name}") if stored else None

    @property
    def training(self) -> TrainingLength | None:
        """How long the whole training is, where its user said so."""
        stored = self.facts.get("training")
        return validate(TrainingLength, stored, source=f"study {self.name}") if stored else None

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
    return StudyView.of(study.study_name, shown_url(url), study.user_attrs, read_records(study))


def _best(view: StudyView) -> ThroughputConfig | None:
    if view.result is not None and view.result.best.speedup.significant:
        return view.result.best.config
    assert view.space is not None and view.baseline is not None
    configs = (view.baseline, *view.space.configurations(view.baseline))
    estimates = Estimates.of(
        configs,
        view.records,
        usable_cores=view.facts["machine"]["usable_cores"],
    )
    if estimates is None:
        return None
    others = estimates.measured.intersection(configs) - {view.baseline}
    return max(others, key=estimates.units_per_s, default=view.baseline)
