"""When a row of `benchmarks/gpu.py` passes: judges of figures, which run nothing."""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy import stats

from autotune.best_config import Speedup
from autotune.measurement import FailureCause, StartMode
from autotune.study.records import TrialRecord

_READY_SHARE = 0.5
_ALIKE, _STATED_ALIKE, _COMPILED_ALIKE = 0.05, 0.05, 0.10
_NEAR_BEST, _MOST_MEMORY, _PIN_MATTERS = 0.95, 0.90, 0.03
_FEWEST_TRIALS, _LEFT_MIB, _OVER_BUDGET = 3, 200.0, 1.15

Figures = Mapping[str, object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found for a row.

    Attributes:
        passed: None where there is nothing to judge.
        rule: When it passes, in words.
        figures: What was measured, plain values.
        message: Why it did not pass, or was not judged.
    """

    passed: bool | None
    rule: str
    figures: Figures = dataclasses.field(default_factory=dict)
    message: str = ""


def judge(rule: str, figures: Figures, faults: Sequence[str | None]) -> Verdict:
    """Passed where there are no faults."""
    found = [fault for fault in faults if fault]
    return Verdict(passed=not found, rule=rule, figures=figures, message="; ".join(found))


def forked(records: Sequence[TrialRecord], fresh_reason: str | None, *, on_gpu: bool) -> Verdict:
    """Whether the trials of a search were forked, and worked."""
    measured = [r for r in records if r.measurement is not None and r.phase.is_brief]
    num_forked = sum(r.start_mode is StartMode.FORK for r in measured)
    off_gpu = [
        r for r in measured if r.measurement is not None and not r.measurement.device_memory_bytes
    ]
    failed = [r.failure.message for r in records if r.failure is not None]
    figures = {"forked": num_forked, "searched": len(measured), "failed": len(failed)}
    return judge(
        "all trials of the search are forked, two or more, none fails, and they use the GPU",
        figures,
        (
            f"not forked: {fresh_reason}" if fresh_reason else None,
            "too few forked" if num_forked < min(2, len(measured) or 2) else None,
            "some are not forked" if num_forked < len(measured) else None,
            f"failed: {failed[0]}" if failed else None,
            "the GPU was not used" if on_gpu and off_gpu else None,
        ),
    )


def ready_time(forked_s: Sequence[float], cold_s: Sequence[float]) -> Verdict:
    """Whether a forked trial has its first batch much sooner than a cold one."""
    found = statistics.median(forked_s), statistics.median(cold_s)
    figures = {"forked_s": found[0], "cold_s": found[1], "times_sooner": found[1] / found[0]}
    late = found[0] > _READY_SHARE * found[1]
    return judge(
        f"the first batch of a forked trial comes in at most {_READY_SHARE:.0%} of a cold one's",
        figures,
        ("forking saves too little" if late else None,),
    )


def same_rate(turns: Mapping[str, Sequence[float]]) -> Verdict:
    """Whether forked trials run as fast as fresh ones.

    Args:
        turns: Forked ÷ fresh for each loop, block by block.
    """
    found = {loop: _mean_ratio(ratios) for loop, ratios in turns.items()}
    rule = f"forked / fresh within {_ALIKE:.0%}; open where the 95 % interval reaches that"
    figures = {
        loop: f"{ratio:.3f} ({low:.3f} to {high:.3f})" for loop, (ratio, low, high) in found.items()
    }
    off = [loop for loop, (ratio, _, _) in found.items() if abs(ratio - 1) > _ALIKE]
    surely = [loop for loop in off if found[loop][1] > 1 + _ALIKE or found[loop][2] < 1 - _ALIKE]
    if off and not surely:
        message = f"too uncertain: {', '.join(off)}"
        return Verdict(passed=None, rule=rule, figures=figures, message=message)
    return judge(rule, figures, [f"{loop}: {found[loop][0]:.3f}" for loop in surely])


def _mean_ratio(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean, and its 95 % interval by Student's t; nothing is sure of a single one."""
    logs = [math.log(ratio) for ratio in ratios]
    mean, num = statistics.fmean(logs), len(logs)
    half = math.inf
    if num > 1:
        half = float(stats.t.ppf(0.975, num - 1)) * statistics.stdev(logs) / math.sqrt(num)
    return math.exp(mean), math.exp(mean - half), math.exp(min(mean + half, 700.0))


def told_reason(
    modes: Sequence[StartMode | None], fresh_reason: str | None, *, output: str
) -> Verdict:
    """Whether trials of a script that uses the GPU too early are cold, and that is told."""
    reason = fresh_reason or ""
    started = collections.Counter(str(mode) for mode in modes)
    num_forked = started[StartMode.FORK]
    figures = {"trials": len(modes), "started": dict(started), "reason": reason}
    return judge(
        "no trial is forked, the reason names CUDA or the GPU and is printed, "
        f"{_FEWEST_TRIALS} trials or more are measured within the budget",
        figures,
        (
            f"{num_forked} were forked" if num_forked else None,
            None
            if "CUDA" in reason or "GPU" in reason
            else f"the reason is {reason or 'not told'}",
            None if reason and reason in " ".join(output.split()) else "the reason is not printed",
            f"only {len(modes)} trials" if len(modes) < _FEWEST_TRIALS else None,
        ),
    )


def stated_gain(stated: Speedup, trained: Sequence[float], seconds: float) -> Verdict:
    """Whether ordinary training is as much faster with the file as was stated."""
    rule = f"trained speed-up within the stated interval, widened by {_STATED_ALIKE:.0%}"
    ratio = statistics.geometric_mean(trained)
    figures = {
        "stated": stated.ratio,
        "low": stated.low,
        "high": stated.high,
        "trained": ratio,
        "trained_lowest": min(trained),
        "trained_highest": max(trained),
        "seconds_each": seconds,
    }
    if not stated.significant:
        return Verdict(passed=None, rule=rule, figures=figures, message="no gain was stated")
    kept = stated.low / (1 + _STATED_ALIKE) <= ratio <= stated.high * (1 + _STATED_ALIKE)
    return judge(rule, figures, (None if kept else f"training gains {ratio:.2f}x",))


def like_training(
    records: Sequence[TrialRecord],
    *,
    fresh_reason: str | None,
    stated: Speedup,
    trained: Sequence[float],
    chosen: str,
    on_gpu: bool,
) -> Verdict:
    """Whether a loop that autotune does not own is tuned like any other.

    Args:
        records: All trials.
        fresh_reason: Why they were not forked.
        stated: The speed-up.
        trained: The same of ordinary trainings.
        chosen: The settings, for people.
        on_gpu: Whether trials were to run on one.
    """
    measured = [r for r in records if r.measurement is not None]
    failed = [r.failure for r in records if r.failure is not None]
    off_gpu = [r for r in measured if r.measurement and not r.measurement.device_memory_bytes]
    found = stated_gain(stated, trained, 0.0)
    started = collections.Counter(str(r.start_mode) for r in measured if r.phase.is_brief)
    names = ("stated", "low", "high", "trained", "trained_lowest", "trained_highest")
    figures = {"searched": dict(started), "failed": len(failed), "chosen": chosen}
    figures |= {name: found.figures[name] for name in names if stated.significant}
    figures |= {"reason": fresh_reason} if fresh_reason else {}
    return judge(
        f"no trial fails, one or more of the search is measured, all use the GPU, {found.rule}",
        figures,
        (
            f"failed: {failed[0].cause}: {failed[0].message}" if failed else None,
            None if started else "nothing was searched",
            "the GPU was not used" if on_gpu and off_gpu else None,
            found.message if found.passed is False else None,
        ),
    )


def out_of_memory(
    records: Sequence[TrialRecord],
    *,
    chosen_share: float | None,
    left_mib: float | None,
    told: str,
) -> Verdict:
    """Whether running out of GPU memory is recognised, costs little and leaves nothing.

    Args:
        records: All trials, by number.
        chosen_share: Share of the GPU's memory that was taken with the chosen settings.
        left_mib: More memory in use afterwards than before; None where that is not known.
        told: What the output says of the largest batch that fits.
    """
    ran_out = [r for r in records if _cause(r) is FailureCause.OUT_OF_DEVICE_MEMORY]
    started = [r for r in records if r.measurement is not None or r in ran_out]
    others = [cause for r in records if (cause := _cause(r)) and not cause.is_of_device]
    heavier = [
        later.config.batch_size
        for first in ran_out
        for later in started
        if later.number > first.number and later.config.batch_size > first.config.batch_size
    ]
    fitted = [r for r in records if r.measurement is not None]
    after = [r for r in fitted if ran_out and r.number > ran_out[0].number]
    figures = {
        "ran_out": sorted({r.config.batch_size for r in ran_out}),
        "fitted": sorted({r.config.batch_size for r in fitted}),
        "chosen_share_of_memory": chosen_share,
        "left_mib": left_mib,
        "told": told,
    }
    return judge(
        f'the cause is "{FailureCause.OUT_OF_DEVICE_MEMORY}", nothing heavier is started after it, '
        f"later trials work, the answer takes at most {_MOST_MEMORY:.0%} of the memory, and at "
        f"most {_LEFT_MIB:.0f} MiB stay in use",
        figures,
        (
            None if ran_out else "nothing ran out of GPU memory",
            f"failed otherwise: {others[0]}" if others else None,
            f"heavier ones were started: {heavier}" if heavier else None,
            "no trial worked afterwards" if ran_out and not after else None,
            "the memory of the chosen settings is not known" if chosen_share is None else None,
            f"the answer takes {chosen_share:.0%} of the memory"
            if chosen_share is not None and chosen_share > _MOST_MEMORY
            else None,
            f"{left_mib:.0f} MiB stay in use" if left_mib and left_mib > _LEFT_MIB else None,
        ),
    )


def pinned(*, offered: bool, chosen: bool, ratio: float, stated: float | None = None) -> Verdict:
    """Whether pinning memory is searched by default, and rightly chosen.

    Args:
        offered: Whether the axis was searched without being asked for.
        chosen: Whether the answer pins.
        ratio: Ordinary training pinned ÷ not, all else as chosen.
        stated: The same as the search measured it.
    """
    figures = {
        "searched_by_default": offered,
        "chosen": chosen,
        "pinned_over_not": ratio,
        "measured_in_search": stated,
    }
    gain = ratio - 1 if chosen else 1 / ratio - 1
    return judge(
        "pin_memory is searched by default, and the value not chosen is at most "
        f"{_PIN_MATTERS:.0%} faster in ordinary training",
        figures,
        (
            None if offered else "pin_memory is not among the axes by default",
            "the other value is faster" if gain < -_PIN_MATTERS else None,
        ),
    )


def compiled(
    records: Sequence[TrialRecord],
    *,
    stated_per_s: float,
    compiled_per_s: float,
    plain_per_s: float,
    compile_s: float,
) -> Verdict:
    """Whether a compiled script is tuned like any other."""
    failed = [r for r in records if r.failure is not None]
    ratio = stated_per_s / compiled_per_s
    figures = {
        "stated_over_trained": ratio,
        "compiled_over_plain": compiled_per_s / plain_per_s,
        "first_step_s": compile_s,
        "measured": sum(r.measurement is not None for r in records),
        "failed": len(failed),
    }
    return judge(
        "no trial fails, and the stated baseline is within "
        f"{_COMPILED_ALIKE:.0%} of ordinary training of the compiled script",
        figures,
        (
            f"failed: {_cause(failed[0])}: {failed[0].failure.message}"
            if failed and failed[0].failure
            else None,
            f"stated / trained is {ratio:.2f}" if abs(ratio - 1) > _COMPILED_ALIKE else None,
        ),
    )


def search_time(
    *, tuning_s: float, budget_s: float, num_trials: int, cold_s: float, complete: bool
) -> Verdict:
    """Whether a run keeps to its budget.

    Args:
        tuning_s: What it took.
        budget_s: What it was given.
        num_trials: Trials of the search that were measured.
        cold_s: What a cold start took.
        complete: Whether it ended by itself.
    """
    figures = {
        "tuning_s": tuning_s,
        "budget_s": budget_s,
        "trials": num_trials,
        "cold_starts_alone_s": num_trials * cold_s,
        "ended_by_itself": complete,
    }
    late = tuning_s > _OVER_BUDGET * budget_s
    return judge(
        f"takes at most {_OVER_BUDGET:.0%} of its budget",
        figures,
        (f"took {tuning_s:.0f} s" if late else None,),
    )


def near_best(chosen_per_s: Sequence[float], grid: Mapping[str, Sequence[float]]) -> Verdict:
    """Whether the chosen settings train as fast as the best of a small grid.

    Args:
        chosen_per_s: Samples per second of the trainings with the chosen settings.
        grid: The same with others, two trainings or more each. How far these lie apart tells how
            sure the ratio is.
    """
    means = {name: statistics.geometric_mean(rates) for name, rates in grid.items()}
    chosen, best = statistics.geometric_mean(chosen_per_s), max(means, key=lambda name: means[name])
    ratio = chosen / means[best]
    logs = [[math.log(rate) for rate in rates] for rates in (chosen_per_s, *grid.values())]
    degrees = sum(len(found) - 1 for found in logs)
    spread = math.sqrt(
        sum(statistics.variance(found) * (len(found) - 1) for found in logs) / degrees
    )
    error = spread * math.sqrt(1 / len(chosen_per_s) + 1 / len(grid[best]))
    high = ratio * math.exp(float(stats.t.ppf(0.975, degrees)) * error)
    figures = {"chosen_over_best": ratio, "at_most": high, "chosen": chosen, "best": best}
    figures |= {"grid": means}
    rule = f"chosen / best of the grid at least {_NEAR_BEST}; open where the 95 % interval has that"
    if ratio < _NEAR_BEST <= high:
        return Verdict(passed=None, rule=rule, figures=figures, message="too uncertain")
    return judge(rule, figures, (f"{best} is faster" if ratio < _NEAR_BEST else None,))


def disturbed(num_disturbed: int, num_blocks: int, causes: Sequence[str]) -> Verdict:
    """Whether blocks beside a busy GPU are reported."""
    figures = {"disturbed": num_disturbed, "blocks": num_blocks, "causes": list(causes)}
    return judge(
        "half of the blocks or more are called disturbed, and the GPU is named",
        figures,
        (
            "too few are" if 2 * num_disturbed < max(1, num_blocks) else None,
            None if any("GPU" in cause for cause in causes) else "the GPU is not named",
        ),
    )


def bounds(found: Mapping[str, str | None], expected: Mapping[str, str]) -> Verdict:
    """Whether it is said what holds each loop back."""
    wrong = [f"{loop} is called {told}" for loop, told in found.items() if told != expected[loop]]
    return judge("each loop is called what it is", dict(found), wrong)


def _cause(record: TrialRecord) -> FailureCause | None:
    return record.failure.cause if record.failure else None
