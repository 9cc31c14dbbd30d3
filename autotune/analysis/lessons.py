"""What failures teach: values of settings with which trials fail, and that are not tried again.

A lesson comes from failures that are alike, and from what the configurations that failed have in
common and none that was measured has. It follows from the stored trials alone, so that a study that
goes on knows it, too, and it goes as soon as a trial contradicts it.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Collection, Iterable, Mapping

from autotune.axes import AXES
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.study.records import Phase, TrialRecord, telling_failures

# So many configurations that failed alike teach something, and fewer where so many others ran.
_ENOUGH, _ENOUGH_BESIDE_OTHERS, _OTHERS = 3, 2, 3
# What differs between failures that are alike: counts, process ids, addresses, worker numbers.
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d[\d.,]*")


class Relation(enum.Enum):
    """How a value must be related to a condition's values."""

    AT_LEAST = enum.auto()
    IS = enum.auto()
    NONE_OF = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Some values of one setting.

    Attributes:
        setting: One of `axes.AXES`.
        relation: How they are related to `values`.
        values: One value, or several for NONE_OF.
    """

    setting: str
    relation: Relation
    values: tuple[object, ...]

    def holds_for(self, config: ThroughputConfig) -> bool:
        """Whether the configuration has such a value."""
        value = getattr(config, self.setting)
        if self.relation is Relation.AT_LEAST:
            return value is not None and value >= self.values[0]
        return (value in self.values) == (self.relation is Relation.IS)

    @property
    def is_single_number(self) -> bool:
        """Whether it is one number among others that are not ruled out."""
        value = self.values[0]
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return self.relation is Relation.IS and is_number

    def __str__(self) -> str:
        shown = " or ".join(str(value).lower() for value in self.values)
        if self.relation is Relation.IS:
            return f"{self.setting} = {shown}"
        if self.relation is Relation.NONE_OF:
            return f"{self.setting} other than {shown}"
        if self.values == (1,):
            return f"{self.setting} > 0"
        return f"{self.setting} >= {shown}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Configurations that are ruled out, since others like them failed alike.

    Attributes:
        conditions: What a configuration must fulfil to be ruled out; all of them. There are
            several where the trials do not tell which of them is to blame.
        num_failures: Configurations that failed.
        failure: The first of their failures.
    """

    conditions: tuple[Condition, ...]
    num_failures: int
    failure: Failure

    def covers(self, config: ThroughputConfig) -> bool:
        """Whether a configuration is ruled out."""
        return all(condition.holds_for(config) for condition in self.conditions)

    @property
    def subject(self) -> str:
        """What is ruled out, for people: `num_workers > 0`."""
        return " together with ".join(map(str, self.conditions))

    @property
    def reason(self) -> str:
        """Why, for people."""
        failure = self.failure
        crashed = failure.cause is FailureCause.CRASHED
        text = failure.message if crashed else f"{failure.cause}: {failure.message}"
        return f"{self.num_failures} trials failed alike: {text}" if self.num_failures > 1 else text

    @property
    def sentence(self) -> str:
        """What is told of it, on one line."""
        return f"{self.subject} is ruled out: {self.reason}"


def kind_of(failure: Failure) -> tuple[str, str]:
    """What failures that are alike have in common: the cause, and what it is about.

    That is the setting where the trial named one, and the message without its numbers elsewhere.
    """
    return failure.cause, failure.setting or _NUMBER.sub("#", failure.message)


def learn(records: Iterable[TrialRecord]) -> tuple[Lesson, ...]:
    """The lessons of a study's trials, one at most for each kind of failure.

    A configuration that was measured can run: its failures teach nothing, and no lesson covers it.
    Neither does one cover the baseline. Of failures for which anything may have been the reason
    (see `_teaches`), and of those where something ran out (see `memory_order.needs_as_much`),
    nothing is learned here.
    """
    records = tuple(records)
    telling = telling_failures(records)
    able = {
        record.config
        for record in records
        if record.measurement is not None or record.phase is Phase.BASELINE
    }
    kinds: dict[tuple[str, str], dict[ThroughputConfig, Failure]] = {}
    for record in records:
        failure, config = record.failure, record.config
        if failure is None or record.number not in telling or config in able:
            continue
        if _teaches(failure, record.phase):
            kinds.setdefault(kind_of(failure), {}).setdefault(config, failure)
    lessons = (_lesson(failures, able) for failures in kinds.values() if able)
    return tuple(lesson for lesson in lessons if lesson is not None)


def _teaches(failure: Failure, phase: Phase) -> bool:
    """Whether a failure can be due to a value of a setting.

    A signal may have come from anybody. In the confirmation one that stands still may wait for
    another one.
    """
    if failure.cause.is_exhaustion or failure.cause is FailureCause.KILLED:
        return False
    return not (failure.cause is FailureCause.TIMED_OUT and phase is Phase.CONFIRM)


def _lesson(
    failures: Mapping[ThroughputConfig, Failure], able: Collection[ThroughputConfig]
) -> Lesson | None:
    """What failures of one kind teach; None where they do not teach anything yet.

    Trials that fail at random must not cost half of the space. So all failures of the kind must
    have the value: a further one without it ends the lesson. Where several values would explain
    all of them, only configurations that have all of these values are ruled out, and what is tried
    next tells which it is. And three configurations must have failed, or two while three others
    ran: were failures random, two of five would be precisely those with a certain value in one
    case of ten (1 / C(5, 2)). A number of which larger ones ran is a less likely reason than one
    that is larger than all that ran, and counts only without such a one. A trial that names the
    setting itself is believed at once.

    Args:
        failures: One for each configuration that failed so.
        able: The configurations that can run.
    """
    first = next(iter(failures.values()))
    named = [setting for setting in AXES if setting == first.setting]
    found = {setting: _condition(setting, failures, able, first.cause) for setting in named or AXES}
    if found.get("num_workers"):
        # Whatever is prefetched follows from there being workers.
        found.pop("prefetch_factor", None)
    conditions = tuple(condition for condition in found.values() if condition is not None)
    if any(condition.relation is Relation.AT_LEAST for condition in conditions):
        conditions = tuple(condition for condition in conditions if not condition.is_single_number)
    enough = _ENOUGH if len(able) < _OTHERS else _ENOUGH_BESIDE_OTHERS
    if not conditions or (not named and len(failures) < enough):
        return None
    return Lesson(conditions=conditions, num_failures=len(failures), failure=first)


def _condition(
    setting: str,
    failed: Collection[ThroughputConfig],
    able: Collection[ThroughputConfig],
    cause: FailureCause,
) -> Condition | None:
    """The most general condition on a setting that all that failed fulfil, and none that can run.

    Of a setting that the script ignores, all values fail but the one that it has anyhow. A number
    is taken to fail together with all that are larger, if none of these ran.
    """
    bad = {getattr(config, setting) for config in failed}
    good = {getattr(config, setting) for config in able}
    if bad & good or None in bad:
        return None
    if cause is FailureCause.SETTING_IGNORED:
        values = tuple(sorted(good, key=str))
        return Condition(setting=setting, relation=Relation.NONE_OF, values=values)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in bad):
        lowest = min(bad)
        if all(value is None or value < lowest for value in good):
            return Condition(setting=setting, relation=Relation.AT_LEAST, values=(lowest,))
    if len(bad) > 1:
        return None
    return Condition(setting=setting, relation=Relation.IS, values=tuple(bad))
