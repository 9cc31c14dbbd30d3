"""The diagnosis in words: each setting's part, and what is left that is no setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from autotune.analysis.ablation import Effect, Severity, Value
from autotune.analysis.bottleneck import Bottleneck, Bound
from autotune.analysis.lessons import Lesson, learn
from autotune.analysis.stragglers import Straggler
from autotune.axes import AXES
from autotune.config import ThroughputConfig
from autotune.intervals import INDIFFERENCE, Ratio
from autotune.report.study_view import StudyView

# A setting that does so much more or less beside the others than alone is worth a word.
_INTERACTION = 0.05
_ADVICE = {
    Bound.DATA: "preparing the data once and storing it (decode, tokenize or resize ahead), "
    "cheaper transforms, or more cores for the loader",
    Bound.COMPUTE: "more cores or a GPU, lower precision, or a smaller or compiled model",
    Bound.OVERHEAD: "fewer operations per step: torch.compile, fused optimizers, or a larger "
    "batch than was allowed",
    Bound.BALANCED: "making both step and loader cheaper, since they take about as long, or more "
    "cores",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One setting's line.

    Attributes:
        setting: Which, as it is called for people.
        severity: How much the baseline's value held training back.
        before: The baseline's value, and where it comes from.
        after: The value in the best.
        alone: What changing it alone brings.
        with_others: What it brings beside the others' best values.
        remark: What there is to know of it.
    """

    setting: str
    severity: Severity
    before: str
    after: str
    alone: str
    with_others: str
    remark: str


def findings(view: StudyView) -> list[Finding]:
    """A line for each setting, the one that held training back most first."""
    assert view.best is not None
    lessons = learn(view.records)
    return [
        Finding(
            setting=label(effect.change.setting),
            severity=effect.severity,
            before=f"{shown(effect.change.before)} ({_origin(view, effect.change.setting)})",
            after=shown(_kept(effect)),
            alone=_ratio(effect.alone, effect.change.alone),
            with_others=_ratio(effect.with_others, effect.change.without),
            remark="; ".join(filter(None, (_remark(effect), *_ruled_out(effect, lessons)))),
        )
        for effect in view.effects
    ]


def outlook(bottleneck: Bottleneck) -> str:
    """What holds the loop back now, how far its ceiling is, and what could move it."""
    ceiling = ""
    if bottleneck.bound in (Bound.DATA, Bound.BALANCED):
        ceiling = f" (with zero-cost data loading: up to {bottleneck.ceiling:.2f}x)"
    return (
        f"the remaining bottleneck is not one of the tuned settings{ceiling}; "
        f"consider {_ADVICE[bottleneck.bound]}"
    )


def waited_for(straggler: Straggler) -> str:
    """Which rank the others wait for, and what it waits for itself."""
    return (
        f"all ranks wait for rank {straggler.rank} on {straggler.host}: it waits for its loader "
        f"{100 * straggler.wait_share:.0f} % of the time, and the others at most "
        f"{100 * straggler.others_share:.0f} %"
    )


def label(setting: str) -> str:
    """A setting's name for people."""
    return AXES[setting].label or setting


def shown(value: Value) -> str:
    """A setting's value for people."""
    return (
        {True: "yes", False: "no", None: "-"}[value]
        if isinstance(value, bool | None)
        else str(value)
    )


def _kept(effect: Effect) -> Value:
    changes = effect.change.without is not None
    return effect.change.after if changes else effect.change.before


def _origin(view: StudyView, setting: str) -> str:
    value = view.facts.script_default.get(setting)
    axis = AXES[setting]
    if value is None or value in axis.words[:1]:
        return axis.default_origin
    return "the script's"


def _ratio(ratio: Ratio | None, compared: ThroughputConfig | None) -> str:
    """A ratio for people; empty where there is nothing to compare."""
    if ratio is None:
        return "" if compared is None else Severity.NOT_MEASURED.value
    return f"{ratio.ratio:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


def _ruled_out(effect: Effect, lessons: Sequence[Lesson]) -> Iterator[str]:
    """Which values of a setting failures have ruled out."""
    for lesson in lessons:
        if any(condition.setting == effect.change.setting for condition in lesson.conditions):
            yield f"{lesson.subject} is ruled out, since trials failed"


def _remark(effect: Effect) -> str:
    change = effect.change
    parts = []
    if change.without is None:
        kept, tried = shown(change.before), shown(change.after)
        parts = [f"keep {kept} (tried: {tried})"] if effect.alone else []
        if effect.alone and effect.alone.low > 1 + INDIFFERENCE:
            parts = [f"{tried} helps by itself, and not with the other changes"]
    elif effect.alone and effect.with_others:
        apart = math.log(effect.with_others.ratio / effect.alone.ratio)
        if effect.alone.high < effect.with_others.low and apart > _INTERACTION:
            parts.append(
                "helps only with the other changes"
                if effect.alone.ratio < 1 + INDIFFERENCE
                else "helps more with the other changes"
            )
        elif effect.with_others.high < effect.alone.low and -apart > _INTERACTION:
            parts.append("helps less with the other changes")
    elif change.alone is None:
        parts.append("has no effect without workers")
    return "; ".join(parts)
