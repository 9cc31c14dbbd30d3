"""What `autotune doctor` says of a command."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console

from autotune.report.progress import say
from autotune.study.definition import StudyDefinition
from autotune.system.machine import this_machine
from autotune.tuning.examination import Findings


def print_findings(console: Console, definition: StudyDefinition, found: Findings) -> None:
    """What would be tuned, what not and why, and whether trials can be forked."""
    plan, baseline = found.plan, found.baseline
    say(
        console,
        f"baseline: {plan.baseline.summary}, {baseline.units_per_s:,.0f} "
        f"{found.unit or 'samples'}/s",
    )
    if found.ready_s is None:
        reason = f": {found.cold_start_reason}" if found.cold_start_reason else ""
        say(console, f"trials: cold starts of {found.start_up_s:.1f} s each{reason}")
    else:
        say(
            console,
            f"trials: forked, first batch after {found.ready_s:.2f} s (a cold start takes "
            f"{found.start_up_s:.1f} s)",
        )
    for name, values in plan.space.axes.items():
        if name in found.problems:
            say(console, f"not tuned: {name}, since trials fail: {found.problems[name]}")
        elif len(values) > 1:
            say(console, f"tuned: {name} {', '.join(map(str, values))}")
    for note in plan.notes:
        say(console, f"not tuned: {note}")
    say(
        console,
        f"{len(plan.configurations)} configurations, searched by sampler {definition.sampler}; "
        f"estimated time: {found.expected.low_s:.0f} to {found.expected.high_s:.0f} s, within the "
        f"budget of {definition.budget_s:.0f} s",
    )
    say(console, "nothing was searched or written; `autotune run` does that")


def findings_as_dict(definition: StudyDefinition, found: Findings) -> dict[str, Any]:
    """The same as plain values, for JSON."""
    plan = found.plan
    return {
        "machine": dataclasses.asdict(this_machine()),
        "baseline": plan.baseline.to_dict(),
        "unit": found.unit or "samples",
        "units_per_s": found.baseline.units_per_s,
        "start_up_s": found.start_up_s,
        "ready_s": found.ready_s,
        "cold_start_reason": found.cold_start_reason,
        "axes": plan.space.axes,
        "not_tuned": list(plan.notes),
        "problems": dict(found.problems),
        "num_configurations": len(plan.configurations),
        "sampler": definition.sampler.value,
        "estimated_s": [found.expected.low_s, found.expected.high_s],
    }
