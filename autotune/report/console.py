"""What a person sees in the end: the answer, the diagnosis, and a study as a table."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from autotune.analysis.ablation import SEVERITY_RULE
from autotune.analysis.result import Result
from autotune.report.device import device
from autotune.report.diagnosis import findings
from autotune.report.progress import say
from autotune.report.study_view import StudyView
from autotune.report.text import (
    batch_sizes,
    bottlenecks,
    certainty,
    collector,
    comparison,
    headline,
    how,
    runners_up,
    so_far,
    trial_rows,
    verdict,
    warnings,
)

if TYPE_CHECKING:
    import pandas as pd

# Wide enough for the table of a study where the output goes to a file.
_FILE_WIDTH = 200


def print_answer(console: Console, view: StudyView) -> None:
    """The answer of a study, and why: what each setting does, and what is left.

    Of a study that did not come to an end, what is known so far.
    """
    result = view.result
    if result is None:
        say(console, so_far(view))
        _print_findings(console, view)
        return
    best = result.best
    table = Table(
        title="baseline and chosen settings, each in fresh processes", title_justify="left"
    )
    for heading in ("", "baseline", "chosen"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, before, after in comparison(view):
        table.add_row(label, before, after)
    say(console, headline(view))
    say(console, f"baseline: {best.baseline.config.summary}")
    say(console, f"chosen:   {best.config.summary}")
    print_table(console, table)
    for line in (verdict(result), *certainty(result)):
        say(console, line)
    for line in runners_up(result):
        say(console, f"next best: {line}")
    _print_batch_sizes(console, view)
    _print_findings(console, view)
    told = (*bottlenecks(result), *collector(view), *device(view))
    for line in (*told, how(result), *warnings(result)):
        say(console, line)


def print_written(console: Console, result: Result, out: Path) -> None:
    """Where the settings were written, and whether training will find them there."""
    say(console, f"written to {out}")
    if result.best.patch is not None:
        usual = (Path("best_config.yaml"), Path("best_config.d") / out.name)
        file = [] if out in usual else ["--config", str(out)]
        command = shlex.join(["autotune", "exec", *file, "--"])
        say(console, f"train with it: {command} {result.best.study.command}")
    # A file in the folder beside the one that is loaded is found as well.
    found = {out.absolute(), out.absolute().parent.with_suffix(".yaml")}
    if result.config_path is not None and Path(result.config_path) not in found:
        say(console, f"note: the loop loads {result.config_path} in training, not this file")


def answer_as_dict(view: StudyView) -> dict[str, object]:
    """The result and the effects as plain values, for `--json`."""
    assert view.result is not None
    return {
        **dataclasses.asdict(view.result),
        "effects": [
            {
                **dataclasses.asdict(effect),
                "brings": effect.brings,
                "severity": effect.severity.value,
            }
            for effect in view.effects
        ],
    }


def _print_batch_sizes(console: Console, view: StudyView) -> None:
    """What another batch size costs, and how to get it."""
    rows = batch_sizes(view)
    if not rows:
        return
    table = Table(
        title="the best settings of each batch size, and their throughput ÷ that of the chosen "
        "ones",
        caption="take another row: autotune apply --batch-size N",
        title_justify="left",
        caption_justify="left",
    )
    for heading in rows[0]:
        table.add_column(heading, justify="right" if heading == "batch size" else "left")
    for row in rows:
        table.add_row(*row.values())
    print_table(console, table)


def _print_findings(console: Console, view: StudyView) -> None:
    """What each setting does, as a table."""
    if not view.effects:
        return
    table = Table(
        title="what limited training: each setting changed one at a time from the baseline, and "
        "taken back from the chosen settings (leave one out)",
        caption=SEVERITY_RULE,
        title_justify="left",
        caption_justify="left",
    )
    headings = ("problem", "setting", "was", "is", "one at a time", "leave one out", "remarks")
    for heading in headings:
        table.add_column(heading)
    for found in findings(view):
        row = (found.severity.value, found.setting, found.before, found.after, found.alone)
        table.add_row(*row, found.with_others, found.remark)
    print_table(console, table)


def print_study(console: Console, frame: pd.DataFrame) -> None:
    """A study as a table, a row per trial."""
    if frame.empty:
        say(console, f"study {frame.attrs['study']} has no trials yet")
        return
    table = Table(title=f"study {frame.attrs['study']}", title_justify="left")
    rows = trial_rows(frame)
    for heading in rows[0]:
        left = heading in ("phase", "state", "start", "configuration", "remarks")
        table.add_column(heading, justify="left" if left else "right")
    for row in rows:
        table.add_row(*(cell.text for cell in row.values()))
    print_table(console, table)


def print_table(console: Console, table: Table) -> None:
    """Print a table; into a file as wide as it needs to be."""
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(table)
