"""What a person sees: progress while a run goes on, the answer, and a study as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autotune.best_config import Performance
from autotune.measurement import figure
from autotune.search.answer import Result
from autotune.search.progress import Progress

# Wide enough for the table of a study where the output goes to a file.
_FILE_WIDTH = 200


def say(console: Console, line: str) -> None:
    """Print a line as it is: no markup, no wrapping, so that paths and commands can be copied."""
    console.print(Text(line), soft_wrap=True)


class ConsoleObserver:
    """Shows progress: one live line on a terminal, a plain line now and then elsewhere.

    It draws only when it is told something, which is never while a block is timed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = (
            Live(console=console, auto_refresh=False, transient=True)
            if console.is_terminal
            else None
        )
        self._last_best = 0.0
        self._num_lines = 0

    def __enter__(self) -> ConsoleObserver:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        say(self._console, text)

    def update(self, progress: Progress) -> None:
        """Show how far the run is."""
        line = _progress_line(progress)
        if self._live is not None:
            self._live.update(Text(line), refresh=True)
        elif progress.best > 1.02 * self._last_best or self._num_lines % 10 == 0:
            say(self._console, line)
        self._num_lines += 1
        self._last_best = max(self._last_best, progress.best)


class SilentObserver:
    """Shows nothing."""

    def __enter__(self) -> SilentObserver:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Nothing."""

    def update(self, progress: Progress) -> None:
        """Nothing."""


def _progress_line(progress: Progress) -> str:
    minutes, seconds = divmod(round(progress.left_s), 60)
    ratio = progress.best / progress.baseline if progress.baseline else 0.0
    best = f"{figure(progress.best, progress.best_error)} {progress.unit}/s"
    if progress.probability is None:
        settled = progress.num_measured + progress.num_ruled_out
        how_far = (
            f"{settled}/{progress.num_configurations} settled ({progress.num_measured} measured)"
        )
        sure = ""
    else:
        how_far = f"{progress.num_measured}/{progress.num_configurations} measured"
        sure = f", within 2 % of the best: {100 * progress.probability:.0f} %"
    return (
        f"{progress.phase.value}: {how_far} | best {best} = {ratio:.2f}x baseline "
        f"({progress.best_config.summary}){sure} | at most {minutes}:{seconds:02d} left"
    )


def print_result(console: Console, result: Result, out: str) -> None:
    """The answer: baseline and chosen settings side by side, the speed-up, and how it was found."""
    best = result.best
    table = Table(
        title="baseline and chosen settings, each in fresh processes", title_justify="left"
    )
    for heading in ("", "baseline", "chosen"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, before, after in _comparison(best.baseline, best.expected):
        table.add_row(label, before, after)
    say(console, f"baseline: {best.baseline.config.summary}")
    say(console, f"chosen:   {best.config.summary}")
    _print_table(console, table)
    speedup = best.speedup
    rounds = f"{result.num_rounds} round{'s' if result.num_rounds > 1 else ''}"
    interval = (
        f"{speedup.ratio:.2f}x (95 % interval {speedup.low:.2f} to {speedup.high:.2f}, {rounds})"
    )
    if speedup.significant:
        say(console, f"speed-up: {interval}")
    elif speedup.ratio == speedup.low:
        say(console, "no significant gain: there is nothing to compare the baseline with")
    else:
        say(
            console,
            f"no significant gain: the best other configuration reached {interval} of the "
            "baseline's throughput; the baseline's settings are kept",
        )
    for line in _certainty(result):
        say(console, line)
    for role, bottleneck in (
        ("baseline", result.baseline_bottleneck),
        ("chosen", result.bottleneck),
    ):
        if bottleneck is not None and not (
            role == "chosen" and best.config == best.baseline.config
        ):
            say(console, f"the {role} settings are {bottleneck}")
    say(console, _how(result))
    for line in _warnings(result):
        say(console, line)
    say(console, f"written to {out}")
    if result.config_path is not None and Path(result.config_path) != Path(out).absolute():
        say(console, f"note: the loop loads {result.config_path} in training, not this file")


def result_as_dict(result: Result) -> dict[str, object]:
    """The result as plain values, for `--json`."""
    return dataclasses.asdict(result)


def print_study(console: Console, frame: pd.DataFrame) -> None:
    """A study as a table, a row per trial."""
    if frame.empty:
        say(console, f"study {frame.attrs['study']} has no trials yet")
        return
    table = Table(title=f"study {frame.attrs['study']}", title_justify="left")
    rows = [_study_row(row) for row in frame.to_dict("records")]
    for heading in rows[0] if rows else ():
        left = heading in ("phase", "state", "start", "configuration", "remarks")
        table.add_column(heading, justify="left" if left else "right")
    for row in rows:
        table.add_row(*row.values())
    _print_table(console, table)


def _print_table(console: Console, table: Table) -> None:
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(table)


def _study_row(row: Mapping[Hashable, Any]) -> dict[str, str]:
    def number(name: str, scale: float = 1.0) -> str:
        return "" if pd.isna(row[name]) else figure(row[name] * scale)

    def text(name: str) -> str:
        return "" if pd.isna(row[name]) else str(row[name])

    return {
        "trial": str(row["number"]),
        "phase": text("phase"),
        "state": text("state"),
        "start": text("start_mode"),
        "configuration": row["configuration"],
        "samples/s": number("samples_per_s"),
        "± %": number("relative_error", 100),
        "s/step": number("seconds_per_step"),
        "CPU %": number("cpu_utilisation", 100),
        "waiting %": number("data_wait_share", 100),
        "MiB": number("peak_memory_bytes", 2**-20),
        "start-up s": number("start_up_s"),
        "total s": number("duration_s"),
        "remarks": text("cause") or _remarks(row),
    }


def _remarks(row: Mapping[Hashable, Any]) -> str:
    """What to know of a trial's figures."""
    remarks = []
    if not pd.isna(row["num_disturbed"]) and row["num_disturbed"]:
        remarks.append(f"{row['num_disturbed']} blocks disturbed")
    if not pd.isna(row["unsteady"]) and row["unsteady"]:
        remarks.append("unsteady")
    return ", ".join(remarks)


def _comparison(before: Performance, after: Performance) -> list[tuple[str, str, str]]:
    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.0f} %"

    def mebibytes(value: int | None) -> str:
        return "" if value is None else f"{value / 2**20:,.0f}"

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
        both("CPU s per 1,000 samples", lambda p: figure(1000 * p.cpu_s_per_sample)),
        both("  while waiting for workers", lambda p: share(p.wait_cpu_share)),
        both("peak memory, MiB", lambda p: mebibytes(p.peak_memory_bytes)),
        both("in /dev/shm, MiB", lambda p: mebibytes(p.shared_memory_bytes)),
        both("on the GPU, MiB", lambda p: mebibytes(p.device_memory_bytes)),
    ]
    if before.units_per_s is None:
        del rows[1]
    return [row for row in rows if any(row[1:])]


def _certainty(result: Result) -> list[str]:
    """How sure it is that nothing better was missed, what comes next, and whether it paid."""
    lines = [
        f"with {100 * result.probability:.0f} % probability these settings are within 2 % of the "
        f"fastest of the {result.num_configurations} configurations"
    ]
    lines += [
        f"next: {other.config.summary}: {other.ratio:.2f}x of it ({other.low:.2f} to "
        f"{other.high:.2f})"
        for other in result.runners_up
    ]
    steps = result.pays_after_steps
    if steps is not None:
        seconds = steps * result.best.expected.seconds_per_optimizer_step
        lines.append(
            f"tuning took {result.tuning_s:.0f} s, and has paid for itself after "
            f"{figure(math.ceil(steps))} optimizer steps ({seconds:.0f} s of training)"
        )
    return lines


def _how(result: Result) -> str:
    ruled_out = (
        f", {result.num_ruled_out} ruled out by what these showed" if result.num_ruled_out else ""
    )
    left = result.num_configurations - result.num_measured - result.num_ruled_out
    not_reached = f", {left} not reached" if left else ""
    failed = f"; {result.num_failed} trials failed" if result.num_failed else ""
    return (
        f"measured {result.num_measured} of {result.num_configurations} configurations"
        f"{ruled_out}{not_reached}{failed}"
    )


def _warnings(result: Result) -> list[str]:
    lines = []
    best = result.best
    if best.config.effective_batch_size != best.baseline.config.effective_batch_size:
        lines.append(
            f"note: an update now takes {best.config.effective_batch_size} samples instead of "
            f"{best.baseline.config.effective_batch_size}: the learning rate may need another "
            "look; name effective_batch_size in load_config to keep it fixed"
        )
    for difference in result.fork_differences:
        lines.append(
            f"note: {difference.config.summary} ran at {figure(difference.forked)} forked and at "
            f"{figure(difference.fresh)} ({figure(difference.fresh_low)} to "
            f"{figure(difference.fresh_high)}) in fresh processes: the fresh ones count"
        )
    if result.num_rounds == 1:
        lines.append(
            "note: there was time for one round only, so that the intervals rest on how much runs "
            "differ as a rule: give more time with --budget"
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
