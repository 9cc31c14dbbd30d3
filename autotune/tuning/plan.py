"""What is going to be searched, and roughly how long that takes."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from autotune.allocator import KEPT, is_set_outside
from autotune.analysis.loading import loader_cpu_share
from autotune.analysis.page_faults import page_fault_share
from autotune.axes import AXES, AxisValue
from autotune.blocks import LoopFacts, Sample
from autotune.config import ThroughputConfig
from autotune.ipc.introductions import Introduction
from autotune.measurement import Measurement, fullest_device
from autotune.optimizer.trial_cost import LONGEST_UPDATE_S, TrialCost
from autotune.space import Space, default_axes, extended_axes
from autotune.study.definition import (
    MOST_CANDIDATES,
    MOST_ROUNDS,
    AxisSet,
    SamplerName,
    StudyDefinition,
)
from autotune.system.machine import this_machine
from autotune.torchrun import with_ranks_per_node
from autotune.tuning.trial_runs import longest_settling_s

_KEPT_BY_PATCH = "--patch leaves it alone (--patch-batch-size tunes it, too)"
# A larger value than those tried is tried where the last step along the axis brought more than
# this; estimates of two configurations that are equally fast seldom differ as much.
_WORTH_WIDENING = 0.05
# The garbage collector is searched where loading takes at least this share of a core. It takes up
# to about half of loading (docs/collector.md), so that below this it brings at most some 2 %, which
# is no matter.
_LEAST_LOADING = 0.05
# Share of the time that memory must cost for the allocator to be searched.
_LEAST_FAULTS = 0.02
# Beside a GPU, no more threads are tried, but for the baseline's own number.
_MOST_THREADS_BESIDE_DEVICE = 8
# The search holds what it expects of any two configurations, and looks at all of it before each
# trial: 3 s and 1 GB with so many.
_MOST_CONFIGURATIONS = 2500
# What the adaptive search tries: two where structure decides, and many times that where many are
# alike (measured: benchmarks/search.py); on a machine that is not quiet, each for longer.
_FEWEST_TRIALS, _MOST_TRIALS = 2, 50
_BLOCKS_AT_FIRST, _BLOCKS_WHERE_ALIKE = 2, 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is going to be searched, known once the baseline has reached its loop.

    Attributes:
        baseline: The settings without tuning.
        space: The axes that are searched.
        configurations: The combinations of their values.
        num_samples: Samples that an epoch is drawn from; no batch is larger. None if unknown.
        notes: What this loop does not let one search, a sentence each.
        fixed: Settings that it does not take from its configuration.
    """

    baseline: ThroughputConfig
    space: Space
    configurations: tuple[ThroughputConfig, ...]
    num_samples: int | None = None
    notes: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds that a run will take if few configurations have to be tried, and if many do."""

    low_s: float
    high_s: float


def make_plan(
    definition: StudyDefinition, introduction: Introduction, facts: LoopFacts | None = None
) -> Plan:
    """The baseline and the space for a command on this machine.

    Args:
        definition: What is asked for.
        introduction: What the command says of itself.
        facts: What its loop says of itself; None where it was not reached.

    Raises:
        BadInputError: An axis does not fit what the script asks for.
    """
    baseline = introduction.default
    if baseline.num_threads is None:
        # Named, so that a trial that was forked with one thread can set it.
        baseline = dataclasses.replace(baseline, num_threads=introduction.default_num_threads)
    if is_set_outside(os.environ):
        # No setting takes that back.
        baseline = dataclasses.replace(baseline, malloc=KEPT)
    effective = introduction.effective_batch_size
    named_ranks = definition.axes.get("ranks_per_node", ())
    if named_ranks:
        # That the command can be given other numbers is better known now than at the first trial.
        with_ranks_per_node(definition.command, baseline.ranks_per_node)
    fewest_here = min([baseline.ranks_per_node, *map(int, named_ranks)])
    axes = default_axes(
        usable_cores=this_machine().usable_cores,
        fewest_ranks=fewest_here,
        baseline=baseline,
        effective_batch_size=effective,
    )
    if definition.axis_set is AxisSet.EXTENDED:
        axes |= extended_axes(baseline)
    facts = facts or LoopFacts()
    if definition.patch and not definition.patch_batch_size:
        facts = dataclasses.replace(facts, fixed={**facts.fixed, "batch_size": _KEPT_BY_PATCH})
    axes, notes = _within(facts, {**axes, **definition.axes}, baseline, named=definition.axes)
    obstacles = _obstacles(axes, baseline, introduction.versions.get("torch"))
    axes = {name: values for name, values in axes.items() if name not in obstacles}
    notes += tuple(f"{name} is left out: {reason}" for name, reason in obstacles.items())
    fewest_ranks = baseline.num_ranks * fewest_here // baseline.ranks_per_node
    space = Space(axes=axes, effective_batch_size=effective, fewest_ranks=fewest_ranks)
    return Plan(
        baseline=baseline,
        space=space,
        configurations=space.configurations(baseline),
        num_samples=facts.samples_per_epoch,
        notes=notes,
        fixed=frozenset(facts.fixed),
    )


def _within(
    facts: LoopFacts,
    axes: Mapping[str, tuple[AxisValue, ...]],
    baseline: ThroughputConfig,
    *,
    named: Collection[str],
) -> tuple[dict[str, tuple[AxisValue, ...]], tuple[str, ...]]:
    """The axes as far as a loop allows them, and what it does not allow, a sentence each.

    Args:
        facts: What the loop said of itself.
        axes: All that would be searched otherwise.
        baseline: Its values are always allowed.
        named: Axes that the user asked for.
    """
    allowed, notes = dict(axes), []
    for name, reason in facts.fixed.items():
        if name not in axes:
            continue
        value = getattr(baseline, name)
        allowed[name] = () if value is None else (value,)
        asked = ", although the study names other values" if name in named else ""
        notes.append(
            f"{name} stays at {'its default' if value is None else value}{asked}: {reason}"
        )
    limit = facts.samples_per_epoch
    if limit is not None and "batch_size" in axes and "batch_size" not in facts.fixed:
        sizes = [n for n in axes["batch_size"] if int(n) <= limit or n == baseline.batch_size]
        left_out = sorted(set(axes["batch_size"]) - set(sizes))
        # Without any of those that were asked for, there is still the baseline's.
        allowed["batch_size"] = tuple(sizes) or (baseline.batch_size,)
        if left_out:
            sizes_text = ", ".join(map(str, left_out))
            notes.append(f"batch_size {sizes_text} is left out: an epoch has {limit} samples")
    return {name: values for name, values in allowed.items() if values}, tuple(notes)


def _obstacles(
    axes: Mapping[str, tuple[AxisValue, ...]], baseline: ThroughputConfig, torch: str | None
) -> dict[str, str]:
    """The axes that mean nothing to this script, with the reason.

    Args:
        axes: All that would be searched otherwise.
        baseline: What the script has otherwise.
        torch: The version of torch that the script had loaded at `load_config`, if it had any.
    """
    has_workers = any(axes.get("num_workers", (baseline.num_workers,)))
    found = {}
    for axis in map(AXES.__getitem__, axes):
        if axis.needs_torch is None:
            continue
        if torch is None or _numbers(torch) < axis.needs_torch:
            wanted = ".".join(map(str, axis.needs_torch))
            has = "had not loaded it at load_config" if torch is None else f"uses {torch}"
            found[axis.name] = f"it needs torch {wanted} or later, and the script {has}"
        elif axis.needs_workers and not has_workers:
            found[axis.name] = "no loader workers are tried"
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def with_fitting_axes(plan: Plan, definition: StudyDefinition, baseline: Sequence[Sample]) -> Plan:
    """The plan with those axes that matter by what the baseline showed.

    The garbage collector matters where loading takes CPU time, the memory allocator where the loop
    takes much memory anew all the time, and page-locked memory where batches go to a GPU. There the
    step's computing is not done by threads: a few serve what is left for them.
    What needs a GPU is left out where the baseline used none, and extended axes where they make the
    space too large. An axis that the user named stays.

    Args:
        plan: What is to be searched.
        definition: What was asked for.
        baseline: What the baseline's trial showed.
    """
    axes = dict(plan.space.axes)
    if loader_cpu_share(baseline, plan.baseline) < _LEAST_LOADING:
        axes.pop("gc", None)
    if page_fault_share(baseline) < _LEAST_FAULTS:
        axes.pop("malloc", None)
    if fullest_device(baseline) is not None:
        if "pin_memory" not in plan.fixed:
            axes["pin_memory"] = (False, True)
        axes["num_threads"] = tuple(
            n
            for n in axes.get("num_threads", ())
            if int(n) <= _MOST_THREADS_BESIDE_DEVICE or n == plan.baseline.num_threads
        )
        axes = {name: values for name, values in axes.items() if values}
    else:
        unfit = [name for name in axes if AXES[name].needs_device and name not in definition.axes]
        for name in unfit:
            del axes[name]
            plan = _noted(plan, f"{name} is left out: the baseline used no GPU")
    axes |= {name: plan.space.axes[name] for name in definition.axes if name in plan.space.axes}
    if axes != plan.space.axes:
        plan = _with_axes(plan, axes)
    return _bounded(plan, named=definition.axes)


def _bounded(plan: Plan, *, named: Collection[str]) -> Plan:
    """The plan without those extended axes that make its space too large."""
    extended = [name for name, axis in AXES.items() if axis.is_extended and name not in named]
    for name in reversed(extended):
        number = len(plan.configurations)
        if number > _MOST_CONFIGURATIONS and name in plan.space.axes:
            axes = {other: v for other, v in plan.space.axes.items() if other != name}
            plan = _noted(
                _with_axes(plan, axes),
                f"{name} is left out: with it there would be {number:,} configurations, and the "
                f"search can hold {_MOST_CONFIGURATIONS:,}",
            )
    return plan


def widen(
    plan: Plan,
    definition: StudyDefinition,
    config: ThroughputConfig,
    units_per_s: Mapping[ThroughputConfig, float],
    rules_out: Callable[[ThroughputConfig], bool] = lambda _: False,
) -> Plan | None:
    """The plan with one more value on each axis of which a larger one may be better than `config`.

    That is where `config` lies at the upper end, and the value before it is worse by enough to
    matter. Axes that the user named stay as they are, threads end at the cores, and batch sizes
    end at the samples of an epoch, and at the effective batch size where they must divide that.
    None where nothing is widened.

    Args:
        plan: What was searched.
        definition: What was asked for.
        config: The best so far.
        units_per_s: What is expected of all configurations of the plan.
        rules_out: Whether a configuration is not to be tried, by what failures teach.
    """
    settings = config.to_dict()
    axes = dict(plan.space.axes)
    for name, axis in AXES.items():
        values = axes.get(name, ())
        fixed = (not axis.is_widened or name in definition.axes) or (
            name == "batch_size" and plan.space.effective_batch_size is not None
        )
        if fixed or len(values) < 2 or settings[name] != values[-1]:
            continue
        added = 2 * int(values[-1])
        if name == "batch_size" and plan.num_samples is not None and added > plan.num_samples:
            continue
        before, after = (
            plan.space.changed(config, **{name: value}) for value in (values[-2], added)
        )
        if rules_out(after):
            continue
        if units_per_s[config] > (1 + _WORTH_WIDENING) * units_per_s.get(before, 0.0):
            axes[name] = (*values, added)
    if axes == plan.space.axes:
        return None
    return _with_axes(plan, axes)


def _noted(plan: Plan, note: str) -> Plan:
    return dataclasses.replace(plan, notes=(*plan.notes, note))


def _with_axes(plan: Plan, axes: Mapping[str, tuple[AxisValue, ...]]) -> Plan:
    space = dataclasses.replace(plan.space, axes=axes)
    return dataclasses.replace(
        plan, space=space, configurations=space.configurations(plan.baseline)
    )


def estimate(
    definition: StudyDefinition,
    plan: Plan,
    baseline: Measurement,
    *,
    start_up_s: float,
    forks: bool,
) -> Estimate:
    """Roughly how long a run takes.

    Steps of other batch sizes are taken to cost as much per sample as the baseline's.

    Args:
        definition: What is asked for.
        plan: What is searched.
        baseline: The baseline's figures.
        start_up_s: What a fresh process takes to its first batch.
        forks: Whether trials are forked.
    """
    sample_s = 1.0 / baseline.samples_per_s
    cost = TrialCost() if forks else TrialCost(beside_s=start_up_s)

    def trial_s(config: ThroughputConfig, num_blocks: int) -> float:
        return cost.trial_s(config.batch_size * sample_s, num_blocks, definition.block_s)

    run_s = (
        start_up_s
        + longest_settling_s(baseline.seconds_per_step)
        + max(definition.confirm_s, min(LONGEST_UPDATE_S, baseline.seconds_per_optimizer_step))
    )
    adaptive = definition.sampler is SamplerName.AUTO
    fewest, most = (1, MOST_CANDIDATES) if adaptive else (definition.num_candidates,) * 2
    low_rounds_s, high_rounds_s = (
        run_s * definition.confirm_rounds * (1 + number) for number in (fewest, most)
    )
    configs = plan.configurations
    if adaptive:
        low_s, high_s = (
            min(number, len(configs)) * sum(trial_s(c, blocks) for c in configs) / len(configs)
            for number, blocks in (
                (_FEWEST_TRIALS, _BLOCKS_AT_FIRST),
                (_MOST_TRIALS, _BLOCKS_WHERE_ALIKE),
            )
        )
        high_s += (MOST_ROUNDS - 1) * high_rounds_s + definition.explanation_s
    else:
        low_s = sum(trial_s(config, 1) for config in configs if not config.num_workers)
        high_s = sum(trial_s(config, definition.max_blocks) for config in configs)
    return Estimate(
        low_s=min(definition.budget_s, run_s + low_rounds_s + low_s),
        high_s=min(definition.budget_s, run_s + high_rounds_s + high_s),
    )
