"""What each setting does: changed alone from the baseline, and taken back alone from the best."""

from __future__ import annotations

import dataclasses
import enum

from autotune.analysis.estimates import Estimates
from autotune.axes import WITHOUT_WORKERS, AxisValue
from autotune.config import ThroughputConfig
from autotune.intervals import INDIFFERENCE, Ratio
from autotune.space import Space, value_of

# What a setting must bring to be called so; less than the last is no matter.
_CRITICAL, _MEDIUM, _LOW = 0.25, 0.05, INDIFFERENCE
Value = AxisValue | None


class Severity(enum.StrEnum):
    """How much a setting held training back: by what it brings, alone or beside the others."""

    CRITICAL = "critical"
    MEDIUM = "medium"
    LOW = "low"
    NONE = "none"
    NOT_MEASURED = "not measured"


SEVERITY_RULE = (
    f"critical: {100 * _CRITICAL:.0f} % or more in one of the two; medium: "
    f"{100 * _MEDIUM:.0f} %; low: {100 * _LOW:.0f} %; none: may be no effect at all"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One setting with two values, and the configurations that tell what that does.

    Attributes:
        setting: One of `axes.AXES`.
        before: Its value in the baseline.
        after: Its value in the best; where that is the same, the best other one.
        alone: The baseline with only this changed; None where it can't be changed alone.
        without: The best with only this taken back; None where it keeps the baseline's value.
    """

    setting: str
    before: Value
    after: Value
    alone: ThroughputConfig | None
    without: ThroughputConfig | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one setting does to the throughput.

    Attributes:
        change: Which, from what to what.
        alone: The baseline with only this changed ÷ the baseline; None where one of them did not
            run.
        with_others: The best ÷ the best with only this taken back; None likewise.
    """

    change: Change
    alone: Ratio | None
    with_others: Ratio | None

    @property
    def brings(self) -> float:
        """By what the setting multiplies the throughput, alone or beside the others."""
        found = self._larger
        return found.ratio if found else 1.0

    @property
    def severity(self) -> Severity:
        """How much the baseline's value held training back."""
        found = self._larger
        if found is None:
            return Severity.NOT_MEASURED
        if self.change.without is None:
            return Severity.NONE
        if found.low <= 1.0 or found.ratio < 1.0 + _LOW:
            # What the best gains by it may be much more than what it does alone.
            return Severity.NOT_MEASURED if self.with_others is None else Severity.NONE
        gain = found.ratio - 1.0
        if gain >= _CRITICAL:
            return Severity.CRITICAL
        if gain >= _MEDIUM:
            return Severity.MEDIUM
        return Severity.LOW

    @property
    def _larger(self) -> Ratio | None:
        found = [ratio for ratio in (self.alone, self.with_others) if ratio]
        return max(found, key=lambda ratio: ratio.ratio, default=None)


def around(
    space: Space, baseline: ThroughputConfig, best: ThroughputConfig
) -> tuple[ThroughputConfig, ...]:
    """All that differ from the baseline, or from the best towards the baseline, in one setting."""
    alone = [
        space.changed(baseline, **{setting: value})
        for setting, values in space.axes.items()
        for value in values
    ]
    without = [
        space.changed(best, **{setting: value_of(baseline, setting)}) for setting in space.axes
    ]
    return tuple(dict.fromkeys((*alone, *without)))


def find_changes(
    space: Space, baseline: ThroughputConfig, best: ThroughputConfig, estimates: Estimates
) -> list[Change]:
    """What is to be compared to tell what each axis does; one of a single value does nothing.

    Args:
        space: What was searched.
        baseline: Where the search began.
        best: The best configuration.
        estimates: Decide which other value is looked at where the best keeps the baseline's.
    """
    changes = []
    for setting in space.axes:
        before, after = value_of(baseline, setting), value_of(best, setting)
        needs_workers = setting in WITHOUT_WORKERS
        movable = bool(baseline.num_workers) or not needs_workers
        if needs_workers and not best.num_workers:
            # It means nothing to the best: what another value does to the baseline is looked at.
            after = before
        if before == after and movable:
            others = {
                value: space.changed(baseline, **{setting: value})
                for value in space.axes[setting]
                if value != before
            }
            others = {v: config for v, config in others.items() if config in estimates.configs}
            if not others:
                continue
            # Where all others fail, there is nothing to measure, and that is told, too.
            able = {v: config for v, config in others.items() if config not in estimates.failed}
            known = able or others
            # One that was run tells more than one that is only believed to be a little better.
            run = {value: c for value, c in known.items() if c in estimates.measured}
            after = max(run or known, key=lambda value: estimates.units_per_s(known[value]))
        alone = space.changed(baseline, **{setting: after}) if movable else None
        without = None
        if value_of(best, setting) != before and (best.num_workers or not needs_workers):
            without = space.changed(best, **{setting: before})
        if alone is not None or without is not None:
            changes.append(
                Change(setting=setting, before=before, after=after, alone=alone, without=without)
            )
    return changes


def effects(
    changes: list[Change],
    baseline: ThroughputConfig,
    best: ThroughputConfig,
    estimates: Estimates,
) -> list[Effect]:
    """What each setting does, the one that brings most first."""
    found = [
        Effect(
            change=change,
            alone=estimates.measured_ratio(change.alone, baseline),
            with_others=estimates.measured_ratio(best, change.without),
        )
        for change in changes
    ]
    ranks = list(Severity)
    return sorted(found, key=lambda effect: (ranks.index(effect.severity), -effect.brings))
