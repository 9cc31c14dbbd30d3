"""Recorded spaces, replayed: a search runs on them as on a machine, in milliseconds.

A truth table holds the blocks of several runs of every configuration, measured in groups that
shared the machine's ups and downs (`benchmarks/record.py`). A replayed run draws one of the
recorded runs, and is charged what that took.

Source: the simulation mode of Kernel Tuner (van Werkhoven 2019), without its free repeats.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.optimizer.adaptive import Reading

Array = NDArray[np.float64]
# Passes over configurations and groups until their effects do not change any more.
_NUM_PASSES = 50
# What asking for blocks takes beside the blocks: stopping and continuing the trial's processes.
_REQUEST_S = 0.005


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedRun:
    """One recorded run.

    Attributes:
        start_s: From the request for it to the loop's steady state.
        duration_s: Of each block, [B].
        num_units: Units in each, as if the machine had been as fast as on average, [B].
        wait_s: The part of each that the loop waited for data, [B].
        wait_cpu_s: CPU seconds of the training process in that time, [B].
        num_steps: Steps in each, [B].
        later: Logarithm of the rate of blocks that would have followed ÷ that of these, as
            expected: what made these fast is in part chance, and does not last.
        later_sd: Standard deviation of that.
    """

    start_s: float
    duration_s: Array
    num_units: Array
    wait_s: Array
    wait_cpu_s: Array
    num_steps: Array
    later: float = 0.0
    later_sd: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TruthTable:
    """A recorded space.

    Attributes:
        name: Its name.
        baseline: The script's own settings.
        runs: The recorded runs of each configuration.
        rates: True units per second of each, at the machine's average speed.
        fresh_start_s: From the start of a fresh process to its loop, without settling.
        drift_at_s, drift: The logarithm of the machine's speed ÷ its average, in time.
    """

    name: str
    baseline: ThroughputConfig
    runs: Mapping[ThroughputConfig, Sequence[RecordedRun]]
    rates: Mapping[ThroughputConfig, float]
    fresh_start_s: float
    drift_at_s: Array
    drift: Array

    @property
    def best(self) -> float:
        """Units per second of the fastest configuration."""
        return max(self.rates.values())

    def regret(self, config: ThroughputConfig) -> float:
        """By which share a configuration is slower than the fastest."""
        return 1.0 - self.rates.get(config, 0.0) / self.best

    def exhaustive_s(self, measure_s: float) -> float:
        """What it takes to measure every configuration for so long, each in a fresh process."""
        return sum(self.fresh_s(config, measure_s) for config in self.runs)

    def fresh_s(self, config: ThroughputConfig, measure_s: float) -> float:
        """The same of one configuration; at least a step is measured."""
        runs = self.runs[config]
        settle_s = sum(run.start_s for run in runs) / len(runs)
        return self.fresh_start_s + settle_s + max(measure_s, self.step_s(config))

    def step_s(self, config: ThroughputConfig) -> float:
        """The longest that a step took on average in a run of a configuration."""
        return max(float(run.duration_s.sum() / run.num_steps.sum()) for run in self.runs[config])


def read_truth(blocks: Path) -> TruthTable:
    """The truth table in NAME.csv.gz, with the facts in NAME.json beside it.

    The logarithm of a run's rate is taken for the sum of its configuration's, its group's (what
    the machine did at the time) and the run's own; the first two are least-squares estimates. The
    fastest of many estimates is a lucky one, so the estimates are shrunk towards the mean of those
    that are about as fast, by as much as the spread of runs and their number tell.

    Source: Efron & Morris 1975, "Data Analysis Using Stein's Estimator and its Generalizations".
    """
    facts = json.loads(blocks.with_name(blocks.name.removesuffix(".csv.gz") + ".json").read_text())
    baseline = ThroughputConfig(**facts["baseline"])
    configs, frame = _read_blocks(blocks, baseline)
    table = _summarise_runs(frame)
    of_config, of_group = _effects(table)
    own = (table["log_rate"] - of_config[table["config"]] - of_group[table["group"]]).to_numpy()
    counts = np.bincount(table["config"])
    truth = _shrunk(of_config, counts, own)
    recorded: dict[ThroughputConfig, list[RecordedRun]] = {config: [] for config in configs}
    found = [run for _, run in frame.groupby(["config", "group"])]
    # Deviations from a mean of few are too small by this.
    numbers = table["config"].to_numpy()
    deviations = own * np.sqrt(counts / np.maximum(1, counts - 1))[numbers]
    has_workers = np.array([config.num_workers > 0 for config in configs])[numbers]
    later, later_sd = _later(found, deviations, has_workers)
    for place, (run, number) in enumerate(zip(found, numbers, strict=True)):
        wanted = truth[number] + deviations[place]
        plain = math.log(run["num_units"].sum() / run["duration_s"].sum())
        recorded[configs[number]].append(
            RecordedRun(
                start_s=float(run["start_up_s"].iloc[0] + run["settle_s"].iloc[0]),
                duration_s=run["duration_s"].to_numpy(),
                num_units=run["num_units"].to_numpy() * math.exp(wanted - plain),
                wait_s=run["wait_s"].to_numpy(),
                wait_cpu_s=run["wait_cpu_s"].to_numpy(),
                num_steps=run["num_steps"].to_numpy(),
                later=float(later[place]),
                later_sd=float(later_sd[place]),
            )
        )
    times = table.groupby("group")["at_s"].mean().sort_values()
    return TruthTable(
        name=blocks.name.removesuffix(".csv.gz"),
        baseline=baseline,
        runs=recorded,
        rates=dict(zip(configs, np.exp(truth).tolist(), strict=True)),
        fresh_start_s=float(np.median(facts["fresh_start_s"])),
        drift_at_s=times.to_numpy(),
        drift=of_group[times.index],
    )


def _read_blocks(
    path: Path, baseline: ThroughputConfig
) -> tuple[tuple[ThroughputConfig, ...], pd.DataFrame]:
    """The configurations, and the blocks with the number of theirs in the column `config`.

    Disturbed blocks are given only of runs that have no others.
    """
    frame = pd.read_csv(path)
    axes = [name for name in frame.columns if name in baseline.to_dict()]
    numbers: dict[ThroughputConfig, int] = {}
    frame["config"] = [
        numbers.setdefault(_configure(baseline, axes, values), len(numbers))
        for values in frame[axes].itertuples(index=False)
    ]
    least = frame.groupby(["config", "group"])["disturbed"].transform("min")
    return tuple(numbers), frame[frame["disturbed"] == least].copy()


def _configure(
    baseline: ThroughputConfig, axes: Sequence[str], values: Sequence[float | str]
) -> ThroughputConfig:
    settings = {
        name: value if isinstance(value, str) else None if math.isnan(value) else int(value)
        for name, value in zip(axes, values, strict=True)
    }
    config = dataclasses.replace(baseline, persistent_workers=None, **settings)  # type: ignore[arg-type]
    if baseline.gradient_accumulation_steps == 1:
        return config
    return config.with_effective_batch_size(baseline.effective_batch_size)


def _summarise_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each run, with the logarithm of what its loader could sustain."""
    table = frame.groupby(["config", "group"]).agg(
        num_units=("num_units", "sum"),
        num_steps=("num_steps", "sum"),
        duration_s=("duration_s", "sum"),
        ready_change=("ready_change", "sum"),
        at_s=("at_s", "mean"),
    )
    drained = np.minimum(0, table["ready_change"])
    share = np.maximum(table["num_steps"] + drained, 0.5) / table["num_steps"]
    table["log_rate"] = np.log(table["num_units"] * share / table["duration_s"])
    return table.reset_index()


def _effects(table: pd.DataFrame) -> tuple[Array, Array]:
    """Least-squares effects of configurations and, around 0, of groups, by alternating means."""
    values, configs, groups = (table[name].to_numpy() for name in ("log_rate", "config", "group"))
    of_group = np.zeros(groups.max() + 1)
    in_use = np.bincount(groups) > 0
    for _ in range(_NUM_PASSES):
        of_config = _means(values - of_group[groups], configs)
        of_group = _means(values - of_config[configs], groups)
        of_group -= of_group[in_use].mean()
    return of_config, of_group


def _later(
    runs: Sequence[pd.DataFrame], deviations: Array, has_workers: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """How the rate of what would have followed a run differs from the run's: mean and sd, [R] each.

    A run's deviation is its process's own, which lasts, and the mean of its blocks' noise, which
    does not; runs with workers differ from those without. The posterior of a normal mean.
    """
    within = np.array([np.log(r["num_units"] / r["duration_s"]).var(ddof=1) for r in runs])
    num_blocks = np.array([len(run) for run in runs])
    later, later_sd = np.zeros(len(runs)), np.zeros(len(runs))
    for kind in (has_workers, ~has_workers):
        if not kind.any():
            continue
        noise = np.nanmean(np.append(within[kind], 0.0)) / num_blocks[kind]
        process = max(0.0, float(np.mean(deviations[kind] ** 2 - noise)))
        keep = process / np.maximum(process + noise, 1e-12)
        later[kind] = (keep - 1.0) * deviations[kind]
        later_sd[kind] = np.sqrt(process * (1.0 - keep))
    return later, later_sd


def _means(values: Array, places: NDArray[np.int64]) -> Array:
    return np.bincount(places, weights=values) / np.maximum(1, np.bincount(places))


def _shrunk(effects: Array, counts: NDArray[np.int64], own: Array) -> Array:
    """The effects of the fastest configurations drawn together, those measured least the most.

    These are all that seem as fast as the slowest of those that were measured more often.

    Source of the spread: DerSimonian & Laird 1986, "Meta-analysis in clinical trials".
    """
    again = counts > counts.min()
    if not again.any():
        again = counts == counts.min()
    fast = effects >= effects[again].min()
    if fast.sum() < 2:
        return effects
    variance = float((own**2).sum()) / max(1, len(own) - len(effects)) / counts[fast]
    weights = 1.0 / variance
    mean = np.average(effects[fast], weights=weights)
    excess = (weights * (effects[fast] - mean) ** 2).sum() - (len(weights) - 1)
    spread = max(0.0, excess / (weights.sum() - (weights**2).sum() / weights.sum()))
    keep = spread / (spread + variance)
    mean = np.average(effects[fast], weights=1.0 / (spread + variance))
    shrunk = effects.copy()
    shrunk[fast] = mean + keep * (effects[fast] - mean)
    return shrunk


class ReplayBench:
    """Runs of a truth table, on a clock of its own. See `search_loop.Bench`.

    Args:
        table: What is replayed.
        seed: Decides which recorded runs are drawn, and where in the record the machine is.
        now_s: What the clock shows at first.
    """

    def __init__(self, table: TruthTable, seed: int, *, now_s: float = 0.0) -> None:
        self.table = table
        self.now_s = now_s
        self._random = np.random.default_rng(seed)
        self._offset_s = self._random.uniform(0.0, table.drift_at_s[-1])

    def run(self, config: ThroughputConfig, num_blocks: int) -> Reading | Failure:
        """A forked run of so many blocks."""
        if config not in self.table.runs:
            return Failure(cause=FailureCause.CRASHED, message="it was not recorded")
        return self.start(config).measure(num_blocks)

    def start(self, config: ThroughputConfig, *, fresh: bool = False) -> ReplayedRun:
        """Start a run of a recorded configuration, forked or fresh."""
        recorded = self.table.runs[config]
        run = recorded[int(self._random.integers(len(recorded)))]
        start_s = run.start_s + (self.table.fresh_start_s if fresh else 0.0)
        self.now_s += start_s
        return ReplayedRun(self, run, self._random, start_s)

    def drift(self, at_s: float) -> float:
        """By how much the machine is fast at a time, as a logarithm of rates."""
        times = self.table.drift_at_s
        return float(np.interp((at_s + self._offset_s) % times[-1], times, self.table.drift))


class ReplayedRun:
    """One of the recorded runs, block by block; after these, what would have followed them.

    Args:
        bench: Its clock is advanced.
        run: What was recorded.
        random: Draws what would have followed.
        start_s: What starting it took.
    """

    def __init__(
        self, bench: ReplayBench, run: RecordedRun, random: np.random.Generator, start_s: float
    ) -> None:
        self._bench = bench
        self._run = run
        self._random = random
        self._start_s = start_s
        self._later = math.exp(random.normal(run.later, run.later_sd))
        self._num_blocks = 0

    def measure(self, num_blocks: int) -> Reading:
        """The next blocks."""
        run = self._run
        num_recorded = len(run.duration_s)
        numbers = np.arange(self._num_blocks, self._num_blocks + num_blocks)
        self._num_blocks += num_blocks
        follows = numbers >= num_recorded
        places = np.where(follows, self._random.integers(num_recorded, size=num_blocks), numbers)
        num_units = run.num_units[places] * np.where(follows, self._later, 1.0)
        duration_s = float(run.duration_s[places].sum())
        middle_s = self._bench.now_s + duration_s / 2
        self._bench.now_s += duration_s + _REQUEST_S
        return Reading(
            at_s=middle_s,
            duration_s=duration_s,
            num_units=float(num_units.sum()) * math.exp(self._bench.drift(middle_s)),
            num_steps=int(run.num_steps[places].sum()),
            wait_s=float(run.wait_s[places].sum()),
            lost_s=float(run.wait_s[places].sum()),
            wait_cpu_s=float(run.wait_cpu_s[places].sum()),
            start_s=self._start_s,
        )

    def measure_for(self, seconds: float) -> Reading:
        """The same for at least so many seconds of steps."""
        return self.measure(max(1, math.ceil(seconds / float(self._run.duration_s.mean()))))
