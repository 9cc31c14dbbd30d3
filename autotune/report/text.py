"""What is told of a study, in words and rows, to be printed or put on a page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

from autotune.analysis.alternatives import by_batch_size
from autotune.analysis.loading import collector_share
from autotune.analysis.result import Result, UnconfirmedGain
from autotune.axes import AXES, WITHOUT_WORKERS, AxisValue
from autotune.best_config import BestConfig, Performance
from autotune.collector import DEFAULT
from autotune.config import ThroughputConfig
from autotune.measurement import figure
from autotune.report.diagnosis import outlook, waited_for
from autotune.report.study_view import StudyView

if TYPE_CHECKING:
    import pandas as pd

# With one batch size there is nothing to choose.
_FEWEST_SIZES = 2
# Less than this share of loading may be noise.
_LEAST_SHARE = 0.05
# A probability below it says no more than that the search had too little time.
_LEAST_PROBABILITY = 0.01
# Where the end of a range is so many times its beginning, that is told.
_NOISY = 1.3


def so_far(view: StudyView) -> str:
    """Of a study without an answer, what is known."""
    if view.best is None or view.estimates is None or view.baseline is None:
        return f"study {view.name} has measured nothing yet"
    rate = figure(view.estimates.units_per_s(view.best))
    return (
        f"study {view.name} has not come to an answer; best so far: {view.best.summary}, about "
        f"{rate} {view.unit}/s, not confirmed; the baseline: {view.baseline.summary}"
    )


def headline(view: StudyView) -> str:
    """The answer in one sentence."""
    result = view.result
    if result is None:
        return _capital(so_far(view))
    speedup, best = result.best.speedup, result.best
    if result.unconfirmed is not None:
        return "No gain is confirmed: the baseline's settings are kept"
    if not speedup.significant:
        return f"No setting makes this loop significantly faster than {best.config.summary}"
    return f"{speedup.ratio:.2f}x faster: {changed_settings(best.baseline.config, best.config)}"


def changed_settings(before: ThroughputConfig, after: ThroughputConfig) -> str:
    """What `after` changes, each setting with both values, and that the rest stays."""
    # What follows from a setting, or belongs to it.
    parts = {"batch_size": "gradient_accumulation_steps", "num_workers": "prefetch_factor"}
    changes = []
    for name in AXES:
        if name in parts.values() or (name in WITHOUT_WORKERS and not after.num_workers):
            continue
        old, new = getattr(before, name), getattr(after, name)
        detail = _detail(before, after, parts[name]) if name in parts else ""
        if old != new:
            changes.append(
                f"{name} {_value(old)} -> {_value(new)}" + (f" ({detail})" if detail else "")
            )
        elif detail:
            changes.append(detail)
    return f"{', '.join(changes)}; keep the other settings"


def _detail(before: ThroughputConfig, after: ThroughputConfig, name: str) -> str:
    old, new = getattr(before, name), getattr(after, name)
    if old == new or new is None:
        return ""
    return f"{name} {_value(new)}" if old is None else f"{name} {_value(old)} -> {_value(new)}"


def _value(value: AxisValue | None) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "default" if value is None else str(value)


def verdict(result: Result) -> str:
    """The speed-up with its interval, or that there is none."""
    if result.unconfirmed is not None:
        return f"no gain is confirmed: {_unconfirmed(result.unconfirmed)}"
    speedup = result.best.speedup
    rounds = f"{result.num_rounds} round{'s' if result.num_rounds > 1 else ''}"
    interval = (
        f"{speedup.ratio:.2f}x (95 % interval {speedup.low:.2f} to {speedup.high:.2f}, {rounds})"
    )
    if speedup.significant:
        return f"speed-up: {interval}"
    if speedup.ratio == speedup.low:
        return "no significant gain: there is nothing to compare the baseline with"
    return (
        f"no significant gain: the best other configuration reached {interval} of the baseline's "
        "throughput; the baseline's settings are kept"
    )


def _unconfirmed(gain: UnconfirmedGain) -> str:
    return (
        f"measured {gain.ratio:.2f}x in the search with {gain.config.summary}, which could not be "
        f"confirmed: {gain.reason}; the baseline's settings are kept"
    )


def bottlenecks(result: Result) -> list[str]:
    """What holds the baseline back, what the chosen settings, and what could move that."""
    best = result.best
    lines = []
    if result.baseline_bottleneck is not None:
        lines.append(f"the baseline settings are {result.baseline_bottleneck}")
    if result.baseline_straggler is not None:
        lines.append(f"with the baseline settings {waited_for(result.baseline_straggler)}")
    if result.bottleneck is not None:
        if best.config != best.baseline.config:
            lines.append(f"the chosen settings are {result.bottleneck}")
        lines.append(outlook(result.bottleneck))
    if result.straggler is not None and result.best.speedup.significant:
        lines.append(f"with the chosen settings {waited_for(result.straggler)}")
    return lines


def collector(view: StudyView) -> list[str]:
    """What the garbage collector takes of loading, where trials with and without it tell.

    With the chosen settings, or else with the baseline's.
    """
    for config in (view.best, view.baseline):
        share = None if config is None else collector_share(view.records, config)
        if config is None or share is None:
            continue
        if share < _LEAST_SHARE:
            return []
        others = dataclasses.replace(config, gc=DEFAULT).summary
        return [
            f"with Python's own settings, the garbage collector takes {100 * share:.0f} % of the "
            f"loader's CPU time ({others})"
        ]
    return []


def comparison(view: StudyView) -> list[tuple[str, str, str]]:
    """Rows of a figure's name, its value with the baseline, and with the chosen settings."""
    assert view.result is not None
    best = view.result.best
    return [*_performances(best.baseline, best.expected), *_durations(view)]


def _performances(before: Performance, after: Performance) -> list[tuple[str, str, str]]:
    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.0f} %"

    def mebibytes(value: int | None) -> str:
        return "" if value is None else f"{value / 2**20:,.0f}"

    def joules(value: float | None) -> str:
        return "" if value is None else figure(1000 * value)

    def rate(p: Performance) -> str:
        low, high = figure(p.samples_per_s_low), figure(p.samples_per_s_high)
        return f"{figure(p.samples_per_s)} ({low} to {high})"

    def both(label: str, form: Callable[[Performance], str]) -> tuple[str, str, str]:
        return label, form(before), form(after)

    rows = [
        both("samples/s (95 % of runs)", rate),
        both(f"{before.unit}/s", lambda p: figure(p.units_per_s or p.samples_per_s)),
        both("seconds per step", lambda p: figure(p.seconds_per_step)),
        both("seconds per optimizer step", lambda p: figure(p.seconds_per_optimizer_step)),
        both("computing", lambda p: share(1 - p.data_wait_share)),
        both("waiting for data", lambda p: share(p.data_wait_share)),
        both("CPU utilisation", lambda p: share(p.cpu_utilisation)),
        both("GPU utilisation", lambda p: share(p.gpu_utilisation)),
        both("CPU s per 1,000 samples", lambda p: figure(1000 * p.cpu_s_per_sample)),
        both("  while waiting for workers", lambda p: share(p.wait_cpu_share)),
        both("energy per 1,000 samples, J", lambda p: joules(p.joules_per_sample)),
        both("  of the GPUs", lambda p: joules(p.gpu_joules_per_sample)),
        both("peak memory, MiB", lambda p: mebibytes(p.peak_memory_bytes)),
        both("in /dev/shm, MiB", lambda p: mebibytes(p.shared_memory_bytes)),
        both("on the GPU, MiB", lambda p: mebibytes(p.device_memory_bytes)),
    ]
    if before.units_per_s is None:
        del rows[1]
    return [row for row in rows if any(row[1:])]


def _durations(view: StudyView) -> list[tuple[str, str, str]]:
    """How long an epoch takes, and the whole training, where their lengths are known."""
    assert view.result is not None
    best = view.result.best
    before, after = (
        (view.steps_per_epoch(config) or 0) * performance.seconds_per_step
        for config, performance in (
            (best.baseline.config, best.baseline),
            (best.config, best.expected),
        )
    )
    rows = [("an epoch", _duration(before), _duration(after))] if before and after else []
    config = best.baseline.config
    num_samples = view.training and view.training.num_samples(config, view.steps_per_epoch(config))
    if num_samples:
        before, after = (num_samples / p.samples_per_s for p in (best.baseline, best.expected))
        rows.append((f"the training, {view.training}", _duration(before), _duration(after)))
    return rows


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{figure(seconds)} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def certainty(result: Result) -> list[str]:
    """How sure it is that nothing better was missed, and when the tuning has paid."""
    if result.probability < _LEAST_PROBABILITY:
        lines = [
            f"some of the {result.num_configurations} configurations are probably faster than "
            "these settings: give the search more time with --budget"
        ]
    else:
        lines = [
            f"with {100 * result.probability:.0f} % probability these settings are within 2 % of "
            f"the fastest of the {result.num_configurations} configurations"
        ]
    steps = result.pays_after_steps
    if steps is not None:
        seconds = steps * result.best.expected.seconds_per_optimizer_step
        lines.append(
            f"tuning took {result.tuning_s:.0f} s; it pays for itself after "
            f"{figure(math.ceil(steps))} optimizer steps ({seconds:.0f} s of training)"
        )
    return lines


def runners_up(result: Result) -> list[str]:
    """What comes next, in throughput ÷ that of the chosen settings."""
    return [
        f"{other.config.summary}: {other.ratio:.2f} times the throughput of the chosen settings "
        f"({other.low:.2f} to {other.high:.2f})"
        for other in result.runners_up
    ]


def batch_sizes(view: StudyView) -> list[dict[str, str]]:
    """A row for each batch size: its best settings, and what they cost of the throughput.

    Empty where one batch size was searched only.
    """
    if view.explored is None or view.best is None or view.result is None:
        return []
    chosen = view.result.best.config
    if chosen not in view.explored.estimates.configs:
        return []
    found = by_batch_size(view.explored, chosen)
    if len(found) < _FEWEST_SIZES:
        return []
    return [
        {
            "batch size": f"{other.config.batch_size:,}",
            "best settings with it": other.config.summary,
            "throughput": "chosen"
            if other.config == chosen
            else f"{other.ratio.ratio:.2f}x ({other.ratio.low:.2f} to {other.ratio.high:.2f})",
            "remarks": "" if other.was_measured else "not measured: what similar ones tell",
        }
        for other in found
    ]


def how(result: Result) -> str:
    """How much of the space was measured."""
    left = result.num_configurations - result.num_measured - result.num_pruned
    parts = [f"measured {result.num_measured} of {result.num_configurations} configurations"]
    if result.num_pruned:
        others = result.num_pruned if left else f"the other {result.num_pruned}"
        parts.append(f"the model pruned {others}")
    if left:
        parts.append(f"{left} not reached")
    if result.num_failed:
        parts.append(f"{result.num_failed} trial{'s' if result.num_failed > 1 else ''} failed")
    return "; ".join(parts)


def _changes(result: Result) -> list[str]:
    """Which settings change their speed as training goes on."""
    lines = []
    told = [("the baseline", result.baseline_change)]
    if result.best.speedup.significant:
        told.append(("training with the chosen settings", result.change))
    for what, change in told:
        if change is not None:
            how = "slower" if change < 1 else "faster"
            lines.append(
                f"note: {what} gets {how} as it goes on ({change:.2f} times the speed at the end "
                "of a confirming run): the figures hold for its first seconds only"
            )
    return lines


def _noise(result: Result) -> list[str]:
    """That one more run may be far from what is stated."""
    expected = result.best.expected
    low, high = expected.samples_per_s_low, expected.samples_per_s_high
    if high <= low * _NOISY or result.num_rounds == 1:
        return []
    return [
        f"note: one more run may reach anything from {figure(low)} to {figure(high)} samples/s: "
        f"the machine's speed varies, or {result.num_rounds} rounds are too few to tell that it "
        "does not"
    ]


def cautions(best: BestConfig) -> list[str]:
    """What the chosen settings change besides the speed."""
    known = (best.baseline.config, ThroughputConfig(batch_size=1))
    return [
        f"note: {name} {_value(value)}: {axis.caution}"
        for name, axis in AXES.items()
        if axis.caution
        and (value := getattr(best.config, name)) not in [getattr(one, name) for one in known]
    ]


def warnings(result: Result) -> list[str]:
    """What a person must know before relying on the figures."""
    lines = []
    best = result.best
    if best.config.effective_batch_size != best.baseline.config.effective_batch_size:
        before, after = (
            round(performance.samples_per_update or config.effective_batch_size)
            for performance, config in (
                (best.baseline, best.baseline.config),
                (best.expected, best.config),
            )
        )
        remedy = (
            f"keep the step with load_config(..., effective_batch_size={before})"
            if best.patch is None
            else "leave the batch size alone with --patch"
        )
        lines.append(
            f"note: an optimizer step now uses {after:,} samples instead of {before:,}: check the "
            f"learning rate, or {remedy}"
        )
    lines += cautions(best)
    for difference in result.fork_differences:
        lines.append(
            f"note: {difference.config.summary} ran at {figure(difference.forked)} forked and at "
            f"{figure(difference.fresh)} ({figure(difference.fresh_low)} to "
            f"{figure(difference.fresh_high)}) in fresh processes: the fresh ones count"
        )
    if result.longer_epoch is not None:
        lines.append(
            f"note: the fastest settings bring {best.speedup.ratio:.2f}x the "
            f"{best.expected.unit} per second, and make an epoch {result.longer_epoch:.2f} times "
            "as long: they are not used. Does an epoch hold more samples with them?"
        )
    lines += _changes(result)
    lines += _noise(result)
    if result.num_rounds == 1:
        lines.append(
            "note: there was time for one round only, so the intervals come from how much runs "
            "usually differ: give more time with --budget"
        )
    if result.unsteady:
        lines.append(
            "note: the chosen settings are unsteady: their speed varied far more than that of the "
            "others, or had not settled"
        )
    causes = "; ".join(result.disturbed_by)
    if result.num_disturbed_runs:
        lines.append(
            f"note: {result.num_disturbed_runs} of the confirming runs were disturbed throughout "
            f"by {causes}: the figures are uncertain; tune again when the machine is quiet"
        )
    elif result.num_disturbed:
        waited = f", {result.waited_s:.0f} s were spent waiting" if result.waited_s > 1 else ""
        blocks = (
            "1 block was" if result.num_disturbed == 1 else f"{result.num_disturbed} blocks were"
        )
        lines.append(
            f"note: {blocks} disturbed by {causes}, and measured again where there was time{waited}"
        )
    return lines


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A figure of a trial as people read it, and as it is sorted: a number or a text, or empty."""

    text: str
    key: float | str


def trial_rows(frame: pd.DataFrame) -> list[dict[str, Cell]]:
    """A row for each trial of a study (see `frame.load_study`), by heading."""
    known = frame.astype(object).where(frame.notna(), None)
    has_gpu = bool(frame["gpu_utilisation"].notna().any())
    return [_row(row, has_gpu=has_gpu) for row in known.to_dict("records")]


def _row(row: Mapping[Hashable, Any], *, has_gpu: bool) -> dict[str, Cell]:
    def number(name: str, scale: float = 1.0) -> Cell:
        if row[name] is None:
            return Cell(text="", key="")
        value = float(row[name]) * scale
        return Cell(text=figure(value), key=value)

    def text(name: str) -> Cell:
        value = "" if row[name] is None else str(row[name])
        return Cell(text=value, key=value)

    return {
        "trial": Cell(text=str(row["number"]), key=row["number"]),
        "phase": text("phase"),
        "state": text("state"),
        "start": text("start_mode"),
        "configuration": text("configuration"),
        "samples/s": number("samples_per_s"),
        "± %": number("relative_error", 100),
        "s/step": number("seconds_per_step"),
        "CPU %": number("cpu_utilisation", 100),
        **({"GPU %": number("gpu_utilisation", 100)} if has_gpu else {}),
        "waiting %": number("data_wait_share", 100),
        "MiB": number("peak_memory_bytes", 2**-20),
        "start-up s": number("start_up_s"),
        "total s": number("duration_s"),
        "remarks": _remarks(row),
    }


def _remarks(row: Mapping[Hashable, Any]) -> Cell:
    """What to know of a trial's figures, or why there are none."""
    remarks = []
    if row["cause"] is not None:
        remarks.append(f"{row['cause']}: {row['message']}" if row["message"] else row["cause"])
    if row["num_disturbed"]:
        remarks.append(f"{row['num_disturbed']} blocks disturbed")
    if row["unsteady"]:
        remarks.append("unsteady")
    found = ", ".join(remarks)
    return Cell(text=found, key=found)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
