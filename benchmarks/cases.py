"""Loops as people write them, tuned and judged: `python benchmarks/cases.py`.

Runs `autotune run` on each script of `benchmarks/cases` as its user would, and judges the outcome
by plain training with the settings file and without: samples per epoch and per optimizer step,
the speed-up against the interval that was stated, the length of an epoch, what was left behind.
`benchmarks/case_list.py` has what is right for each. A case takes up to two minutes. Nothing else
should run meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The directory of the scripts has this file's name: imports must start at the root.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

from benchmarks.case_checks import judge, needs_training
from benchmarks.case_list import EXPECTED, NUM_KINDS, script_of
from benchmarks.case_training import Training, train
from benchmarks.case_tuning import Tuning, missing, tune

ROOT = Path(__file__).resolve().parents[1]
_WIDTH = 200


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found about a case; `wrong` is None where it was skipped."""

    name: str
    kind: int
    outcome: str
    wrong: tuple[str, ...] | None
    seconds: float
    trained: float | None = None
    samples_per_epoch: int | None = None
    samples_per_update: float | None = None
    output: str = ""

    @property
    def judgement(self) -> str:
        """Right, or what is wrong."""
        if self.wrong is None:
            return ""
        return f"wrong: {'; '.join(self.wrong)}" if self.wrong else "right"


def main() -> None:
    args = _arguments()
    names = choose(args.only, args.kind, fast=args.fast)
    earlier = _earlier(args.before)
    found_before: dict[str, Any] = {}
    options = ("--allow-busy",) if args.allow_busy else ()
    how: dict[str, Any] = {
        "budget_s": args.budget,
        "train_s": args.train,
        "num_pairs": args.pairs,
        "options": options,
    }
    reports, console = [], Console(stderr=True, highlight=False)
    for name in names:
        report = run_case(name, ROOT, **how)
        reports.append(report)
        line = f"{name}: {report.outcome}: {report.judgement} ({report.seconds:.0f} s)"
        console.print(line, markup=False, soft_wrap=True)
        if isinstance(earlier, Path):
            found_before[name] = dataclasses.asdict(run_case(name, earlier, **how))
        if args.json is not None:
            args.json.write_text(json.dumps([*map(dataclasses.asdict, reports)], indent=2) + "\n")
    columns = found_before if isinstance(earlier, Path) else earlier
    Console(width=_WIDTH, highlight=False).print(make_table(reports, columns))
    sys.exit(any(report.wrong for report in reports))


def choose(only: Sequence[str], kinds: Sequence[int], *, fast: bool = False) -> list[str]:
    """The names of the cases that were asked for."""
    return [
        name
        for name, case in EXPECTED.items()
        if (not only or name in only)
        and (not kinds or case.kind in kinds)
        and (case.fast or not fast)
    ]


def run_case(
    name: str,
    checkout: Path,
    *,
    budget_s: float,
    train_s: float,
    num_pairs: int,
    options: Sequence[str] = (),
    speed: bool = True,
) -> Report:
    """Tune a case, train with its outcome, and judge it.

    Args:
        name: The case.
        checkout: The directory that `autotune` is imported from.
        budget_s: The budget of the tuning.
        train_s: Seconds of each plain training.
        num_pairs: Trainings with the file and without.
        options: Further options of `autotune run`.
        speed: Whether seconds are judged, too.
    """
    case, begin_s = EXPECTED[name], time.monotonic()
    if absent := missing(case.needs):
        outcome = f"skipped: needs {', '.join(absent)}"
        return Report(name=name, kind=case.kind, outcome=outcome, wrong=None, seconds=0.0)
    with tempfile.TemporaryDirectory(prefix="case-") as directory:
        tuning = tune(
            script_of(name),
            case.command,
            Path(directory),
            checkout=checkout,
            budget_s=budget_s,
            options=options,
        )
        before, compared = _trainings(
            name, tuning, Path(directory), checkout=checkout, train_s=train_s, num_pairs=num_pairs
        )
    verdict = judge(case, tuning, before, compared, speed=speed)
    return Report(
        name=name,
        kind=case.kind,
        outcome=verdict.outcome,
        wrong=verdict.wrong,
        seconds=time.monotonic() - begin_s,
        trained=verdict.trained,
        samples_per_epoch=before[0].samples_per_epoch if before else None,
        samples_per_update=before[0].samples_per_update if before else None,
        output=tuning.output,
    )


def _trainings(
    name: str, tuning: Tuning, directory: Path, *, checkout: Path, train_s: float, num_pairs: int
) -> tuple[list[Training], list[tuple[Training, Training]]]:
    """Plain trainings: with the script's settings, and where the file has others, with these."""
    case = EXPECTED[name]

    def trained(settings: Path | None) -> Training:
        return train(
            script_of(name),
            case.command,
            checkout=checkout,
            settings=settings,
            seconds=train_s,
            first_epochs=case.first_epochs,
            size=case.size,
        )

    if tuning.exit_code != 0 or tuning.best is None:
        return [], []
    if not needs_training(tuning):
        return [trained(None)], []
    before, after = [], []
    for number in range(num_pairs):
        # Whatever else changes with time is shared by both orders.
        order = (None, directory / "best_config.yaml")
        for settings in order if number % 2 == 0 else order[::-1]:
            (before if settings is None else after).append(trained(settings))
    return before, list(zip(before, after, strict=True))


def make_table(reports: Sequence[Report], before: Mapping[str, Mapping[str, Any]]) -> Table:
    """All cases, a row each, with what was found before if there is something."""
    num_right = sum(report.wrong == () for report in reports)
    num_judged = sum(report.wrong is not None for report in reports)
    table = Table(title=f"{num_right} of {num_judged} cases right", title_justify="left")
    table.add_column("case", no_wrap=True)
    if before:
        table.add_column("before")
    for heading in ("outcome", "right or wrong"):
        table.add_column(heading)
    table.add_column("s", justify="right")
    for report in reports:
        row = [f"{report.kind} {report.name}", report.outcome]
        if before:
            row.insert(1, _found_before(before.get(report.name)))
        table.add_row(*map(_plain, (*row, report.judgement, f"{report.seconds:.0f}")))
    return table


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _found_before(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    report = Report(**{**found, "wrong": found["wrong"] and tuple(found["wrong"])})
    return f"{report.outcome}: {report.judgement}"


def _earlier(before: Path | None) -> Path | dict[str, Any]:
    """The other checkout, or what was found there before."""
    if before is None or before.is_dir():
        return {} if before is None else before.resolve()
    return {found["name"]: found for found in json.loads(before.read_text())}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=EXPECTED, default=[], metavar="NAME")
    parser.add_argument("--kind", action="append", type=int, choices=range(1, NUM_KINDS + 1))
    parser.add_argument("--fast", action="store_true", help="those that the tests run")
    parser.add_argument("--budget", type=_seconds, default=60.0, help="of a tuning (60s)")
    parser.add_argument("--train", type=_seconds, default=5.0, help="length of a training (5s)")
    parser.add_argument("--pairs", type=int, default=2, help="trainings with and without the file")
    parser.add_argument("--json", type=Path, help="writes what was found to a file")
    parser.add_argument(
        "--before", type=Path, help="another checkout to compare with, or what --json wrote there"
    )
    parser.add_argument("--allow-busy", action="store_true", help="as in autotune run")
    return parser.parse_args()


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))


if __name__ == "__main__":
    main()
