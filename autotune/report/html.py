"""A study as one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autotune.analysis.ablation import SEVERITY_RULE
from autotune.report import plots as figures
from autotune.report.device import device
from autotune.report.diagnosis import findings, label
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
    trial_rows,
    verdict,
    warnings,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Plot:
    name: str
    figure: go.Figure
    title: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    title: str
    text: str
    plots: tuple[_Plot, ...]


def make_page(view: StudyView, frame: pd.DataFrame) -> str:
    """The report of a study, finished or not, as HTML.

    Args:
        view: The study.
        frame: Its trials (see `frame.load_study`).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    sections = tuple(_sections(view))
    result = view.result
    return environment.get_template("page.html").render(
        view=view,
        title=view.name,
        headline=headline(view),
        lead=[verdict(result), *certainty(result)] if result else [],
        comparison=comparison(view) if result else [],
        runners_up=runners_up(result) if result else [],
        batch_sizes=batch_sizes(view),
        findings=findings(view) if view.best else [],
        severity_rule=SEVERITY_RULE[0].upper() + SEVERITY_RULE[1:],
        bottlenecks=[*bottlenecks(result), *collector(view), *device(view)] if result else [],
        sections=sections,
        trials=trial_rows(frame),
        about=list(_about(view)),
        figures=_as_script({p.name: p.figure for section in sections for p in section.plots}),
        plotly_js=Markup(get_plotlyjs()),
    )


def _sections(view: StudyView) -> Iterator[_Section]:
    unit = f"{view.unit} per second"
    if view.best is None:
        return
    if plot := figures.waterfall(view):
        yield _Section(
            title="From the baseline to the best",
            text=f"In {unit}, one setting after another, the one that brings most first. "
            "Each step is the model's estimate after all trials.",
            plots=(_Plot(name="waterfall", figure=plot),),
        )
    maps = tuple(
        _Plot(
            name=f"map-{across}-{down}",
            figure=figures.heat_map(view, across, down),
            title=f"{label(down)} by {label(across)}",
        )
        for across, down in figures.pairs(view)
    )
    if maps:
        yield _Section(
            title="Throughput over each pair of settings",
            text=f"In {unit}, with the best values of the other settings. Bold: measured. Italic: "
            "predicted from trials of similar settings.",
            plots=maps,
        )
    if plot := figures.importance(view):
        yield _Section(
            title="How much each setting matters",
            text="The share of the differences between all configurations that a setting explains "
            "by itself. What is missing to 100 % comes from settings that matter only together.",
            plots=(_Plot(name="importance", figure=plot),),
        )
    yield _Section(
        title="Throughput and utilisation",
        text="Every trial. Busy cores are not always useful ones: threads that wait may spin.",
        plots=(_Plot(name="utilisation", figure=figures.utilisation(view)),),
    )
    yield _Section(
        title="Step times",
        text="Dotted: warm-up, which does not count. Crosses: blocks that something else on the "
        "machine disturbed, which do not count either where there are others.",
        plots=(_Plot(name="traces", figure=figures.traces(view)),),
    )
    if plot := figures.history(view):
        yield _Section(
            title="The search",
            text="How far the best configuration tried so far was from the best one tried at all.",
            plots=(_Plot(name="history", figure=plot),),
        )


def _about(view: StudyView) -> Iterator[tuple[str, str]]:
    facts = view.facts
    if facts.command:
        yield "command", " ".join(facts.command)
    if view.machine is not None:
        yield "machine", str(view.machine)
    yield from facts.versions.items()
    yield "storage", view.storage
    if view.result is not None:
        yield "tuned", view.result.best.study.date
        yield "search", how(view.result)
        for line in warnings(view.result):
            yield "note", line.removeprefix("note: ")


def _as_script(plots: dict[str, go.Figure]) -> Markup:
    """The figures as JSON that cannot end the script element that it stands in."""
    parts = [f'"{name}": {figure.to_json()}' for name, figure in plots.items()]
    return Markup("{" + ", ".join(parts).replace("<", "\\u003c") + "}")
