"""Studies: opened, repaired, and written trial by trial."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autotune.axes import AXES, AxisValue, Kind
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.study.claims import Owner
from autotune.study.records import (
    Outcome,
    Phase,
    TrialRecord,
    read_trial,
    stored_trials,
    without_forked,
)
from autotune.study.relative import as_here
from autotune.study.server import HEARTBEAT_S, Heartbeat, ServerStorage
from autotune.study.storage import (
    open_storage,
    reading,
    shown_url,
    sqlite_path,
)
from autotune.system.machine import this_machine

# Of what is stored in a study; another number means that it cannot be read.
# Forked trials of version 3 ran with a frozen heap, and cannot be compared with those of now.
SCHEMA_VERSION = 5


class TakenError(Exception):
    """Another machine began a trial of the same configuration since this one looked."""


class StudyStore:
    """One study, open for writing.

    Which configuration comes next is decided elsewhere (see `adaptive` and `proposals`): the stored
    study holds runs that took place, with the real values of the settings, and nothing else.

    Args:
        study: The study.
        server: Where it is kept; None where a lock keeps every other run away, so that no other
            trial can be running.

    Raises:
        BadInputError: Another version of autotune, or something else, made the study.
    """

    def __init__(self, study: optuna.Study, *, server: ServerStorage | None = None) -> None:
        self._study = study
        self._server = server
        self._heartbeat = None if server is None else Heartbeat(server)
        self._owner = Owner.this()
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
        """Store that a trial of `config` begins; gives its number.

        Raises:
            TakenError: It is one of a search, and another machine runs one of the same now.
        """
        if self._server is None or phase is not Phase.SEARCH:
            return self._begin(config, phase, **attributes)
        with self._server.one_at_a_time(self._study._study_id):
            if config in self.running_elsewhere():
                raise TakenError(config.summary)
            return self._begin(config, phase, **attributes)

    def _begin(self, config: ThroughputConfig, phase: Phase, **attributes: int) -> int:
        """In one transaction: whoever sees the trial sees whose it is, and of what."""
        values = {
            name: value
            for name, value in config.to_dict().items()
            if name in AXES and value is not None
        }
        storage = self._study._storage
        trial_id = storage.create_new_trial(
            self._study._study_id,
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=values,
                distributions={name: _distribution(name, v) for name, v in values.items()},
                user_attrs={
                    "phase": phase.value,
                    "config": config.to_dict(),
                    "coordinator": dataclasses.asdict(self._owner),
                    **attributes,
                },
            ),
        )
        if self._heartbeat is not None:
            self._heartbeat.begin(trial_id)
        number = storage.get_trial(trial_id).number
        self.rest()
        return number

    def rest(self) -> None:
        """Close connections to a server that are not used now."""
        if self._server is not None:
            self._server.rest()

    def close(self) -> None:
        """Close all connections to a server, and leave the place that was taken."""
        if self._server is not None:
            self._server.close()

    def complete(self, number: int, outcome: Outcome) -> None:
        """Store a trial's figures, and every block that they come from."""
        attributes: dict[str, Any] = {
            "measurement": dataclasses.asdict(outcome.measurement),
            "start_mode": outcome.start_mode.value,
            "start_up_s": outcome.start_up_s,
            "duration_s": outcome.duration_s,
            "unit": outcome.unit,
            "raw_samples": [dataclasses.asdict(sample) for sample in outcome.samples],
        }
        self._end(number, attributes, value=outcome.measurement.units_per_s)
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
        self._end(number, attributes, state=TrialState.FAIL)

    def records(self) -> tuple[TrialRecord, ...]:
        """All trials, by number, those of other machines as they would have been on this one."""
        found = []
        for trial in stored_trials(self._study):
            record = self._finished.get(trial.number) or read_trial(trial)
            if trial.state.is_finished():
                # It does not change any more, and validating it again takes time.
                self._finished[trial.number] = record
            found.append(record)
        return as_here(found, self._owner.host) if self.is_shared else tuple(found)

    @property
    def host(self) -> str:
        """Name of this machine, as its trials have it."""
        return self._owner.host

    @property
    def is_shared(self) -> bool:
        """Whether runs on other machines may use the study at the same time."""
        return self._heartbeat is not None

    def running_elsewhere(self) -> frozenset[ThroughputConfig]:
        """The configurations of which a trial of another run's search is under way."""
        if not self.is_shared:
            return frozenset()
        if time.monotonic() - self._repaired_s > HEARTBEAT_S:
            self.repair()
        return frozenset(
            read_trial(trial).config
            for trial in stored_trials(self._study)
            if trial.state == TrialState.RUNNING
            and trial.user_attrs.get("phase") == Phase.SEARCH
            and self._owner_of(trial) not in (None, self._owner)
        )

    def take_seat(self, number: int) -> bool:
        """Become one of so many machines that search this study; says whether there was a place."""
        return self._server is None or self._server.take_seat(self._study._study_id, number)

    def trusted_records(self) -> tuple[TrialRecord, ...]:
        """The trials to learn from: all, less the forked ones where these were found wrong."""
        return trusted(self.records(), self.facts)

    def earlier_records(self) -> tuple[TrialRecord, ...]:
        """See `earlier_records`."""
        return earlier_records(self._study)

    def _end(
        self,
        number: int,
        attributes: Mapping[str, Any],
        *,
        value: float | None = None,
        state: TrialState | None = None,
    ) -> None:
        """Store how a trial ended: each value is a transaction; what is missing is read as None.

        Where another run has taken it for dead meanwhile, since this one stood still for minutes,
        it stays so.
        """
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            for name, stored in attributes.items():
                if stored is not None:
                    storage.set_trial_user_attr(trial_id, name, stored)
            self._study.tell(number, value, state=state)
        if self._heartbeat is not None:
            self._heartbeat.end(trial_id)

    def _name_metric(self, name: str) -> None:
        """For other tools that show the study."""
        if not self._metric_named:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names([name])
            self._metric_named = True

    def repair(self, *, own: bool = False) -> None:
        """Mark trials that seem to run and cannot as interrupted; on request this process's too.

        On a database server other machines may be running trials of this study: only those of
        processes of this machine that are gone are marked, and those of which nothing was heard for
        long.
        """
        self._repaired_s = time.monotonic()
        for trial in stored_trials(self._study):
            if trial.state != TrialState.RUNNING:
                continue
            owner = self._owner_of(trial)
            is_own = own and owner == self._owner
            if not self.is_shared or is_own or (owner is not None and owner.is_gone):
                failure = Failure(cause=FailureCause.INTERRUPTED, message="the run was ended")
                self.fail(trial.number, failure)
        if self.is_shared:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.storages.fail_stale_trials(self._study)

    def _owner_of(self, trial: FrozenTrial) -> Owner | None:
        found = trial.user_attrs.get("coordinator")
        with reading(f"trial {trial.number}"):
            return None if found is None else Owner(**found)


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
    without `fresh`, the latest of these is meant. On a server, which several machines share, the
    kind of machine is part of the name (`name@kind`): those of one kind search together.
    """
    storage = open_storage(url, writable=True)
    server = storage if isinstance(storage, ServerStorage) else None
    if server is not None:
        name = f"{name}@{this_machine().kind}"
    with server.one_at_a_time(0) if server is not None else contextlib.nullcontext():
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
        return StudyStore(study, server=server)


def find_study(url: str, name: str | None) -> optuna.Study:
    """A stored study: the named one, or without a name the one that was made last.

    Raises:
        BadInputError: There is no such storage or study.
    """
    storage, names = _open_stored(url)
    if name is not None and name not in names and (own := f"{name}@{this_machine().kind}") in names:
        # On a server the kind of machine is part of the name.
        name = own
    if name is not None and name not in names:
        raise BadInputError(f"study {name}: not in {shown_url(url)}; there are {', '.join(names)}")
    return _load(storage, name or names[-1])


def find_studies(url: str) -> list[optuna.Study]:
    """All studies of a storage, in the order in which they were made; at least one.

    Raises:
        BadInputError: There is no such storage, or none in it.
    """
    storage, names = _open_stored(url)
    return [_load(storage, name) for name in names]


def _open_stored(url: str) -> tuple[optuna.storages.RDBStorage, list[str]]:
    """A storage that holds something, to be read, and the names of its studies."""
    path = sqlite_path(url)
    if path is not None and not path.is_file():
        raise BadInputError(f"storage {path}: there is no such file: run `autotune run` first")
    storage = open_storage(url, writable=False)
    with reading(f"storage {shown_url(url)}"):
        names = [study.study_name for study in storage.get_all_studies()]
    if not names:
        raise BadInputError(f"storage {shown_url(url)}: holds no study: run `autotune run` first")
    return storage, names


def _load(storage: optuna.storages.RDBStorage, name: str) -> optuna.Study:
    with reading(f"study {name}"):
        return optuna.load_study(study_name=name, storage=storage)


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
    storage, own_facts, own_name = study._storage, study.user_attrs, study.study_name
    for other in reversed(storage.get_all_studies()):
        facts = storage.get_study_user_attrs(other._study_id)
        is_older = other._study_id < study._study_id and _base(other.study_name) == _base(own_name)
        if is_older and _workload(facts) == _workload(own_facts):
            trials = storage.get_all_trials(other._study_id, deepcopy=False)
            if any(trial.state == TrialState.COMPLETE for trial in trials):
                # What is wrong with forked trials of this study is wrong with those of the other.
                found = as_here(tuple(map(read_trial, trials)), Owner.this().host)
                return trusted(trusted(found, facts), own_facts)
    return ()


def _base(study_name: str) -> str | None:
    """What studies of one thing have in common on a server, which others use as well."""
    name, separator, _ = study_name.partition("@")
    return name if separator else None


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}.{number}"
