"""The plots of a report, as Plotly figures. They read a study's view and nothing else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from autotune.analysis.ablation import Effect
from autotune.axes import WITHOUT_WORKERS
from autotune.config import ThroughputConfig
from autotune.measurement import Measurement, figure
from autotune.report.diagnosis import label, shown
from autotune.report.study_view import StudyView
from autotune.study.records import Phase, TrialRecord

# Seen well on white and on near black, and told apart by the colour-blind (Okabe & Ito 2008).
BASELINE, BEST, OTHER, FAILED = "#E69F00", "#009E73", "#56B4E9", "#D55E00"
_GRID = "rgba(128,128,128,0.25)"
# Traces of more runs than these would hide each other.
_MAX_TRACES = 8


def waterfall(view: StudyView) -> go.Figure | None:
    """From the baseline's throughput to the best one, a setting at a time.

    The setting that brings most comes first; what helps only together is one step. Each is what is
    expected of the configuration that has those before it as well. None where nothing changed.
    """
    path = _path(view)
    if path is None:
        return None
    names, rates = path
    ratios = [f"{b / a:.2f}x" for a, b in itertools.pairwise(rates)]
    plot = go.Figure(
        go.Waterfall(
            x=[*names, "best"],
            y=[rates[0], *np.diff(rates), 0],
            measure=["absolute", *["relative"] * len(ratios), "total"],
            text=[figure(rates[0]), *ratios, figure(rates[-1])],
            textposition="outside",
            cliponaxis=False,
            increasing={"marker": {"color": BEST}},
            decreasing={"marker": {"color": FAILED}},
            totals={"marker": {"color": OTHER}},
            connector={"line": {"color": _GRID}},
            hovertemplate="%{x}: %{y:,.4g}<extra></extra>",
        )
    )
    return _styled(plot, y=f"{view.unit}/s")


def _path(view: StudyView) -> tuple[list[str], list[float]] | None:
    """Names of the steps from the baseline to the best, and the throughput after each."""
    changed = [effect for effect in view.effects if effect.change.without is not None]
    if not changed or view.estimates is None or view.space is None or view.baseline is None:
        return None
    estimates, config = view.estimates, view.baseline
    names, rates = ["baseline"], [estimates.units_per_s(view.baseline)]
    waiting: list[str] = []
    for number, effect in enumerate(_workers_first(changed)):
        change = effect.change
        config = view.space.changed(config, **{change.setting: change.after})
        waiting.append(f"{label(change.setting)} {shown(change.before)} → {shown(change.after)}")
        if config in estimates.configs and config not in estimates.failed:
            rate = estimates.units_per_s(config)
            if rate > rates[-1] or number == len(changed) - 1:
                names.append("<br>".join(waiting))
                rates.append(rate)
                waiting = []
    return None if waiting else (names, rates)


def heat_map(view: StudyView, across: str, down: str) -> go.Figure:
    """Throughput over two axes: the best that is expected possible with each pair of values.

    Pairs of which no configuration ran have a smaller print: they are reckoned from similar ones.
    """
    assert view.estimates is not None and view.space is not None
    columns, rows = view.space.axes[across], view.space.axes[down]
    grid = np.full((len(rows), len(columns)), math.nan)
    texts = [["" for _ in columns] for _ in rows]
    hovers = [["" for _ in columns] for _ in rows]
    for (row, vertical), (column, horizontal) in itertools.product(
        enumerate(rows), enumerate(columns)
    ):
        found = [
            config
            for config in view.estimates.configs
            if getattr(config, across) == horizontal
            and getattr(config, down) == vertical
            and config not in view.estimates.failed
        ]
        if not found:
            continue
        best = max(found, key=view.estimates.units_per_s)
        ran = any(config in view.estimates.measured for config in found)
        grid[row, column] = view.estimates.units_per_s(best)
        rate = _brief(grid[row, column])
        texts[row][column] = f"<b>{rate}</b>" if ran else f"<i>{rate}</i>"
        hovers[row][column] = f"{best.summary}<br>{'measured' if ran else 'predicted'}"
    plot = go.Figure(
        go.Heatmap(
            x=[shown(value) for value in columns],
            y=[shown(value) for value in rows],
            z=grid,
            text=texts,
            texttemplate="%{text}",
            textfont={"size": 12},
            customdata=hovers,
            hovertemplate=f"%{{customdata}}<br>%{{z:,.4g}} {view.unit}/s<extra></extra>",
            colorscale="Cividis",
            showscale=False,
            xgap=2,
            ygap=2,
        )
    )
    plot.update_xaxes(type="category")
    plot.update_yaxes(type="category")
    return _styled(plot, x=label(across), y=label(down))


def utilisation(view: StudyView) -> go.Figure:
    """Throughput of every trial against the share of the cores that it kept busy."""
    plot = go.Figure()
    for name, color, records in _groups(view):
        found = [(record, m) for record in records if (m := record.measurement)]
        plot.add_scatter(
            x=[100 * m.cpu_utilisation for _, m in found],
            y=[m.units_per_s for _, m in found],
            mode="markers",
            name=name,
            marker={"color": color, "size": 9, "opacity": 0.8},
            text=[f"trial {r.number}, {r.phase.value}<br>{r.config.summary}" for r, _ in found],
            customdata=[_gpu_busy(m) for _, m in found],
            hovertemplate=f"%{{text}}<br>%{{y:,.4g}} {view.unit}/s at %{{x:.0f}} %%{{customdata}}"
            "<extra></extra>",
        )
    plot.update_yaxes(rangemode="tozero")
    return _styled(plot, x="% of the usable cores busy", y=f"{view.unit}/s")


def _gpu_busy(measurement: Measurement) -> str:
    used = measurement.gpu_utilisation
    return "" if used is None else f", GPU {100 * used:.0f} %"


def traces(view: StudyView) -> go.Figure:
    """Seconds per step within the confirming runs: warm-up first, disturbed blocks as crosses.

    Where nothing was confirmed yet, the latest other runs.
    """
    done = [record for record in view.records if record.samples]
    confirming = [record for record in done if record.phase is Phase.CONFIRM]
    plot = go.Figure()
    roles: set[str] = set()
    for record in (confirming or done)[-_MAX_TRACES:]:
        role, color = _role(view, record.config)
        settling = next((s.settling for s in record.samples if s.settling), None)
        name = f"{role}, trial {record.number}"
        at_s = 0.0
        if settling is not None and settling.num_steps:
            at_s = settling.duration_s
            plot.add_scatter(
                x=[0.0, at_s],
                y=[1000 * at_s / settling.num_steps] * 2,
                mode="lines",
                line={"color": color, "dash": "dot"},
                name=name,
                legendgroup=role,
                showlegend=False,
                hovertemplate="warm-up: %{y:.4g} ms per step<extra></extra>",
            )
        times, steps, symbols = [], [], []
        for block in (block for sample in record.samples for block in sample.blocks):
            at_s += block.duration_s
            times.append(at_s)
            steps.append(1000 * block.duration_s / block.num_steps)
            symbols.append("x" if block.interference else "circle")
        plot.add_scatter(
            x=times,
            y=steps,
            mode="lines+markers",
            name=role,
            legendgroup=role,
            showlegend=role not in roles,
            line={"color": color, "width": 1},
            marker={"symbol": symbols, "size": 7},
            hovertemplate="%{y:.4g} ms per step<extra>" + name + "</extra>",
        )
        roles.add(role)
    plot.update_yaxes(type="log")
    return _styled(plot, x="seconds of steps", y="ms per step")


def history(view: StudyView) -> go.Figure | None:
    """How far the best configuration tried so far was from the best known now, against time."""
    if view.estimates is None or view.best is None:
        return None
    known = set(view.estimates.configs)
    tried = [r for r in view.records if r.measurement and r.started_at and r.config in known]
    if not tried:
        return None
    top = max(map(view.estimates.units_per_s, {r.config for r in tried}))
    start = tried[0].started_at
    assert start is not None
    times, regrets, texts, best = [], [], [], 0.0
    for record in tried:
        assert record.started_at is not None
        best = max(best, view.estimates.units_per_s(record.config))
        times.append((record.started_at - start).total_seconds() + (record.duration_s or 0.0))
        regrets.append(100 * (1 - best / top))
        texts.append(f"trial {record.number}, {record.phase.value}<br>{record.config.summary}")
    plot = go.Figure(
        go.Scatter(
            x=times,
            y=regrets,
            mode="lines+markers",
            line={"color": BEST, "shape": "hv"},
            text=texts,
            hovertemplate="%{text}<br>%{y:.1f} % behind after %{x:.0f} s<extra></extra>",
        )
    )
    plot.update_yaxes(rangemode="tozero")
    return _styled(plot, x="seconds", y="% behind the best")


def importance(view: StudyView) -> go.Figure | None:
    """How much of the differences between all configurations each axis explains by itself.

    Source: Sobol 1993, "Sensitivity Estimates for Nonlinear Mathematical Models", first order.
    """
    shares = axis_shares(view)
    if shares is None:
        return None
    shares = shares.sort_values()
    plot = go.Figure(
        go.Bar(
            x=100 * shares.to_numpy(),
            y=list(map(label, shares.index)),
            orientation="h",
            marker={"color": OTHER},
            texttemplate="%{x:.0f} %",
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
        )
    )
    return _styled(plot, x="% of the variance")


def axis_shares(view: StudyView) -> pd.Series[float] | None:
    """First-order shares of the variance of the log throughput, by axis, 0 to 1 each."""
    if view.estimates is None or view.space is None or view.baseline is None:
        return None
    estimates = view.estimates
    configs = [c for c in view.space.configurations(view.baseline) if c not in estimates.failed]
    table = pd.DataFrame([config.to_dict() for config in configs])
    table["log_rate"] = [math.log(estimates.units_per_s(config)) for config in configs]
    total = float(table["log_rate"].var(ddof=0))
    if not total:
        return None
    shares = {}
    for axis in view.space.axes:
        means = table.groupby(axis, dropna=False)["log_rate"].transform("mean")
        shares[axis] = float(means.var(ddof=0)) / total
    return pd.Series(shares)


def _workers_first(changed: Sequence[Effect]) -> list[Effect]:
    """By what they bring, but what needs workers comes after these."""
    ordered = sorted(changed, key=lambda effect: -effect.brings)
    places = [effect.change.setting for effect in ordered]
    if "num_workers" not in places:
        return ordered
    end = places.index("num_workers") + 1
    # Sorting is stable, and False comes first.
    first = sorted(ordered[:end], key=lambda effect: effect.change.setting in WITHOUT_WORKERS)
    return [*first, *ordered[end:]]


def _brief(rate: float) -> str:
    """Two or three digits, which fit into a cell."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:#.3g}{suffix}"
    return f"{rate:#.3g}"


def _role(view: StudyView, config: ThroughputConfig) -> tuple[str, str]:
    if config == view.baseline:
        return "baseline", BASELINE
    return ("best", BEST) if config == view.best else ("other", OTHER)


def _groups(view: StudyView) -> list[tuple[str, str, list[TrialRecord]]]:
    groups: dict[tuple[str, str], list[TrialRecord]] = {}
    for record in view.records:
        groups.setdefault(_role(view, record.config), []).append(record)
    return [(*role, records) for role, records in groups.items()]


def _styled(plot: go.Figure, *, x: str = "", y: str = "") -> go.Figure:
    """Without a ground of its own, so that it fits a light page and a dark one."""
    plot.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        xaxis={"title": x, "gridcolor": _GRID, "zerolinecolor": _GRID, "automargin": True},
        yaxis={"title": y, "gridcolor": _GRID, "zerolinecolor": _GRID, "automargin": True},
        legend={"orientation": "h", "y": 1.08, "x": 0},
        hoverlabel={"font": {"family": "system-ui, sans-serif"}},
    )
    return plot


def pairs(view: StudyView) -> list[tuple[str, str]]:
    """The pairs of axes that have more than one value each."""
    assert view.space is not None
    names = [name for name, values in view.space.axes.items() if len(values) > 1]
    return list(itertools.combinations(names, 2))
