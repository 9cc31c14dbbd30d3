"""Studies: opened, repaired, and written trial by trial."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autotune.axes import AXES, AxisValue, Kind
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.study.records import (
    Outcome,
    Phase,
    TrialRecord,
    read_trial,
    stored_trials,
    without_forked,
)
from autotune.study.storage import open_storage, reading, shown_url, sqlite_path

# Of what is stored in a study; another number means that it cannot be read.
# Forked trials of version 3 ran with a frozen heap, and cannot be compared with those of now.
SCHEMA_VERSION = 4


class StudyStore:
    """One study, open for writing. Optuna's ask and tell, with the configuration given.

    Which configuration comes next is decided elsewhere (see `adaptive` and `proposals`): the stored
    study holds runs that took place, with the real values of the settings, and nothing else.

    Args:
        study: The study.
        alone: Whether a lock keeps every other run away, so that no other trial can be running.

    Raises:
        BadInputError: Another version of autotune, or something else, made the study.
    """

    def __init__(self, study: optuna.Study, *, alone: bool) -> None:
        self._study = study
        self._alone = alone
        with reading(f"study {study.study_name}"):
            self._metric_named = bool(study.metric_names)
            schema_version = study.user_attrs.get("schema_version")
        self._finished: dict[int, TrialRecord] = {}
        if schema_version != SCHEMA_VERSION and (schema_version or stored_trials(study)):
            raise BadInputError(
                f"study {study.study_name}: was not made by this version of autotune: start "
                "another with --fresh"
            )
        study.set_user_attr("schema_version", SCHEMA_VERSION)
        self._sampler = _GivenSampler()
        study.sampler = self._sampler
        self.repair()

    @property
    def name(self) -> str:
        """Name of the study."""
        return self._study.study_name

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the study as a whole."""
        return self._study.user_attrs

    def set_facts(self, **facts: Any) -> None:  # noqa: ANN401
        """Store facts about the study as a whole; plain values only."""
        for name, value in facts.items():
            self._study.set_user_attr(name, value)

    def begin(self, config: ThroughputConfig, phase: Phase, **attributes: int) -> int:
        """Store that a trial of `config` begins; gives its number."""
        self._sampler.values = {
            name: value
            for name, value in config.to_dict().items()
            if name in AXES and value is not None
        }
        # The sampler answers with these values.
        trial = self._study.ask(
            {name: _distribution(name, value) for name, value in self._sampler.values.items()}
        )
        stored = {
            "phase": phase.value,
            "config": config.to_dict(),
            "coordinator": [platform.node(), os.getpid()],
            **attributes,
        }
        for name, value in stored.items():
            trial.set_user_attr(name, value)
        return trial.number

    def complete(self, number: int, outcome: Outcome) -> None:
        """Store a trial's figures, and every block that they come from."""
        attributes: dict[str, Any] = {
            **dataclasses.asdict(outcome.measurement),
            "start_mode": outcome.start_mode.value,
            "start_up_s": outcome.start_up_s,
            "duration_s": outcome.duration_s,
            "unit": outcome.unit,
            "raw_samples": [dataclasses.asdict(sample) for sample in outcome.samples],
        }
        self._set_attributes(number, attributes)
        self._study.tell(number, outcome.measurement.units_per_s)
        self._name_metric(f"{outcome.unit or 'samples'} per second")

    def fail(
        self,
        number: int,
        failure: Failure,
        start_mode: StartMode | None = None,
        duration_s: float | None = None,
    ) -> None:
        """Store why a trial gave no figures, how it was started, and how long it took."""
        attributes: dict[str, Any] = {
            **dataclasses.asdict(failure),
            "cause": failure.cause.value,
            "start_mode": start_mode.value if start_mode else None,
            "duration_s": duration_s,
        }
        self._set_attributes(number, attributes)
        self._study.tell(number, state=TrialState.FAIL)

    def records(self) -> tuple[TrialRecord, ...]:
        """All trials, by number."""
        found = []
        for trial in stored_trials(self._study):
            record = self._finished.get(trial.number) or read_trial(trial)
            if trial.state.is_finished():
                # It does not change any more, and validating it again takes time.
                self._finished[trial.number] = record
            found.append(record)
        return tuple(found)

    def trusted_records(self) -> tuple[TrialRecord, ...]:
        """The trials to learn from: all, less the forked ones where these were found wrong."""
        return trusted(self.records(), self.facts)

    def earlier_records(self) -> tuple[TrialRecord, ...]:
        """See `earlier_records`."""
        return earlier_records(self._study)

    def _set_attributes(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Store what there is: each value is a transaction, and what is missing is read as None."""
        trial_id = self._study._storage.get_trial_id_from_study_id_trial_number(
            self._study._study_id, number
        )
        for name, value in attributes.items():
            if value is not None:
                self._study._storage.set_trial_user_attr(trial_id, name, value)

    def _name_metric(self, name: str) -> None:
        """For other tools that show the study."""
        if not self._metric_named:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names([name])
            self._metric_named = True

    def repair(self) -> None:
        """Mark trials that seem to run and cannot as interrupted.

        On a database server other machines may be running trials of this study: only those of
        processes of this machine that are gone are marked.
        """
        for trial in stored_trials(self._study):
            if trial.state != TrialState.RUNNING:
                continue
            host, pid = trial.user_attrs.get("coordinator", (platform.node(), 0))
            lives = host != platform.node() or (pid != os.getpid() and psutil.pid_exists(pid))
            if lives and not self._alone:
                continue
            failure = Failure(cause=FailureCause.INTERRUPTED, message="the run was ended")
            self.fail(trial.number, failure)


def trusted(records: Iterable[TrialRecord], facts: Mapping[str, Any]) -> tuple[TrialRecord, ...]:
    """Of a study's trials, those to learn from.

    Args:
        records: The trials.
        facts: What is stored of the study as a whole; `forks_mislead` says that forked trials are
            not like training.
    """
    return without_forked(records) if facts.get("forks_mislead") else tuple(records)


def _workload(facts: Mapping[str, Any]) -> tuple[object, ...]:
    """What two studies must have in common to tell of each other."""
    machine = dict(facts.get("machine", {}))
    return (
        facts.get("schema_version"),
        facts.get("command"),
        facts.get("effective_batch_size"),
        machine.get("usable_cores"),
        [gpu.get("name") for gpu in machine.get("gpus", ())],
    )


class _GivenSampler(optuna.samplers.BaseSampler):
    """Suggests the values that it was given."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:  # noqa: ANN401
        return self.values[param_name]


def _distribution(name: str, value: AxisValue) -> BaseDistribution:
    """Wide and the same in every trial and study: the values tried are a grid within these."""
    axis = AXES[name]
    if axis.kind is Kind.WORD:
        return CategoricalDistribution(axis.words)
    if axis.kind is Kind.FLAG:
        return CategoricalDistribution((False, True))
    low = axis.minimum
    return IntDistribution(low, max(int(value), axis.largest), log=low > 0)


def open_study(url: str, name: str, *, fresh: bool) -> StudyStore:
    """The study `name`, made where there is none; with `fresh`, a new one beside the old.

    A fresh study gets the next free name (`name.2`, `name.3`, …), so that nothing is deleted;
    without `fresh`, the latest of these is meant.
    """
    storage = open_storage(url, writable=True)
    with reading(f"storage {shown_url(url)}"):
        names = {summary.study_name for summary in storage.get_all_studies()}
    number = 1
    while _numbered(name, number + 1) in names:
        number += 1
    if fresh and name in names:
        number += 1
    with reading(f"storage {shown_url(url)}"):
        study = optuna.create_study(
            storage=storage,
            study_name=_numbered(name, number),
            direction="maximize",
            load_if_exists=True,
        )
    return StudyStore(study, alone=sqlite_path(url) is not None)


def find_study(url: str, name: str | None) -> optuna.Study:
    """A stored study: the named one, or without a name the one that was made last.

    Raises:
        BadInputError: There is no such storage or study.
    """
    path = sqlite_path(url)
    if path is not None and not path.is_file():
        raise BadInputError(f"storage {path}: there is no such file: run `autotune run` first")
    storage = open_storage(url, writable=False)
    with reading(f"storage {shown_url(url)}"):
        names = [study.study_name for study in storage.get_all_studies()]
    if not names:
        raise BadInputError(f"storage {shown_url(url)}: holds no study: run `autotune run` first")
    if name is not None and name not in names:
        raise BadInputError(f"study {name}: not in {shown_url(url)}; there are {', '.join(names)}")
    with reading(f"study {name or names[-1]}"):
        return optuna.load_study(study_name=name or names[-1], storage=storage)


def earlier_records(study: optuna.Study) -> tuple[TrialRecord, ...]:
    """The trials of the latest study before this one of the same command on a similar machine.

    It is in the same storage, keeps the same effective batch, its machine had as many usable cores
    and GPUs of the same names, and one of its trials succeeded. Empty where there is none, or
    damaged ones. Where this study's forked trials were found wrong, those are left out as well.
    """
    with contextlib.suppress(BadInputError), reading("an earlier study"):
        return _earlier_records(study)
    return ()


def _earlier_records(study: optuna.Study) -> tuple[TrialRecord, ...]:
    storage, own_facts = study._storage, study.user_attrs
    for other in reversed(storage.get_all_studies()):
        facts = storage.get_study_user_attrs(other._study_id)
        if other._study_id < study._study_id and _workload(facts) == _workload(own_facts):
            trials = storage.get_all_trials(other._study_id, deepcopy=False)
            if any(trial.state == TrialState.COMPLETE for trial in trials):
                # What is wrong with forked trials of this study is wrong with those of the other.
                return trusted(trusted(map(read_trial, trials), facts), own_facts)
    return ()


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}.{number}"
