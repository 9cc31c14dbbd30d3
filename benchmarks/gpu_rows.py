"""The rows of `benchmarks/gpu.py`: each runs something, and has a judge look at it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autotune.config import ThroughputConfig
from autotune.study.records import Phase
from autotune.system.machine import this_machine
from benchmarks import gpu_judges
from benchmarks.gpu_judges import Verdict
from benchmarks.gpu_processes import RowError, gpu_memory_used_mib, has_nvml
from benchmarks.gpu_runs import RANKS, Bench, Comparison, Tuned, settings_option

# For runs of which only the trials matter: one brief round of confirmation.
BRIEF: Mapping[str, int | float] = {"confirm_rounds": 1, "confirm_s": 1.0, "num_candidates": 1}
# Shares of the GPU's memory that the activations of batches of `near_limit` take, two of them far
# too many. The backward pass takes a third more. No others: by two sizes that fit, autotune
# foresees those that do not, and starts none of them.
SHARES = {64: 0.56, 160: 1.4, 320: 2.8}
# What the scripts need beside autotune.
_PACKAGES = {"hf_trainer": "transformers", "lightning_fit": "lightning"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row.

    Attributes:
        title: For the table.
        run: Runs and judges.
        gpu_only: Whether it makes no sense on a CPU.
        quick: Whether it belongs to the quick selection.
        need_s: It is not begun where less time is left; as long as it takes at least.
    """

    title: str
    run: Callable[[Bench], Verdict]
    gpu_only: bool = False
    quick: bool = True
    need_s: float = 5.0


def fork_after_check(bench: Bench) -> Verdict:
    tuned = _images(bench)
    result = tuned.view.result
    reason = result.fresh_reason if result else None
    return gpu_judges.forked(tuned.view.records, reason, on_gpu=bench.on_gpu)


def ready_time(bench: Bench) -> Verdict:
    found = _compare(bench, "tiny_mlp")
    return gpu_judges.ready_time(found.forked_s, found.cold_s)


def same_rate(bench: Bench) -> Verdict:
    loops = ("tiny_mlp",) if bench.quick else ("tiny_mlp", "language_model")
    return gpu_judges.same_rate({loop: _compare(bench, loop).turn_ratios for loop in loops})


def stated_gain(bench: Bench) -> Verdict:
    tuned, seconds = _images(bench), bench.lasting(10, 3)
    settings = _settings_file(tuned)
    found = bench.train(
        "gain",
        # Whatever else changes with time is shared by both orders.
        [("images", _threads(), path) for path in (None, settings, settings, None)],
        seconds,
    )
    rates = [training.samples_per_s for training in found]
    trained = [rates[1] / rates[0], rates[2] / rates[3]]
    return gpu_judges.stated_gain(tuned.best.speedup, trained, 2 * seconds)


def out_of_memory(bench: Bench) -> Verdict:
    assert bench.memory_bytes is not None
    before_mib = gpu_memory_used_mib()
    smallest = min(SHARES)
    sample_mib = SHARES[smallest] * bench.memory_bytes / smallest / 2**20
    tuned = bench.tune(
        "near_limit",
        "near_limit",
        "--sample-mib",
        f"{sample_mib:.0f}",
        *settings_option({"batch_size": smallest, "num_threads": _num_threads()}),
        budget_s=bench.lasting(75, 75),
        max_blocks=2,
        # It tries all, whether or not that promises anything.
        sampler="grid",
        axes=_few_axes(*SHARES) | {"pin_memory": [False, True]},
        **BRIEF,
    )
    after_mib = gpu_memory_used_mib(before_mib)
    known = before_mib is not None and after_mib is not None
    told = [line for line in tuned.output.splitlines() if "largest batch" in line]
    shares = [
        record.measurement.device_memory_share
        for record in tuned.view.records
        if record.config == tuned.best.config
        and record.measurement is not None
        and record.measurement.device_memory_share is not None
    ]
    return gpu_judges.out_of_memory(
        tuned.view.records,
        chosen_share=max(shares, default=None),
        left_mib=(after_mib or 0.0) - (before_mib or 0.0) if known else None,
        told=told[0] if told else "",
    )


def pinned(bench: Bench) -> Verdict:
    tuned, seconds = _images(bench), bench.lasting(4, 2)
    chosen = tuned.best.config
    options = [
        settings_option(_settings(dataclasses.replace(chosen, pin_memory=pin)))
        for pin in (False, True, True, False)
    ]
    found = bench.train("pinned", [("images", option, None) for option in options], seconds)
    rates = [training.samples_per_s for training in found]
    axes = tuned.view.facts.searched_axes or {}
    return gpu_judges.pinned(
        offered=len(axes.get("pin_memory", ())) > 1,
        chosen=chosen.pin_memory,
        ratio=statistics.geometric_mean([rates[1] / rates[0], rates[2] / rates[3]]),
        stated=_pinned_in_search(tuned),
    )


def compiled(bench: Bench) -> Verdict:
    seconds, options = bench.lasting(4, 3), ("--compile", *_threads())
    # First: its compiled code is kept for the baseline. Other batch sizes are compiled in trials.
    found = bench.train(
        "compiled_training",
        [("tiny_mlp", options, None), ("tiny_mlp", _threads(), None)],
        seconds,
    )
    tuned = bench.tune(
        "compiled",
        "tiny_mlp",
        *options,
        budget_s=bench.lasting(100, 60),
        axes=_few_axes(256, 1024),
        max_trials=1,
        confirm_rounds=1,
        confirm_s=2.0,
    )
    # The speed of a shared machine drifts: trained before and after.
    after = bench.train("compiled_again", [("tiny_mlp", options, None)], seconds)
    return gpu_judges.compiled(
        tuned.view.records,
        stated_per_s=tuned.best.baseline.samples_per_s,
        compiled_per_s=statistics.geometric_mean([found[0].samples_per_s, after[0].samples_per_s]),
        plain_per_s=found[1].samples_per_s,
        compile_s=found[0].first_step_s,
    )


def search_time(bench: Bench) -> Verdict:
    tuned = _images(bench)
    result = tuned.view.result
    if result is None:
        raise RowError("the study has no result")
    cold = [r.start_up_s for r in tuned.view.records if r.phase is Phase.BASELINE and r.start_up_s]
    return gpu_judges.search_time(
        tuning_s=result.tuning_s,
        budget_s=_images_budget_s(bench),
        num_trials=len(tuned.searched),
        cold_s=cold[0] if cold else 0.0,
        complete=result.complete,
    )


def bounds(bench: Bench) -> Verdict:
    found = {}
    for loop, tuned in (("images", _images(bench)),):
        result = tuned.view.result
        told = result.baseline_bottleneck if result else None
        found[loop] = told.bound.value if told else None
    return gpu_judges.bounds(found, {"images": "data-bound"})


def near_best(bench: Bench) -> Verdict:
    tuned, seconds = _images(bench), bench.lasting(4, 2)
    cores = this_machine().usable_cores
    chosen = tuned.best.config
    others = [
        ThroughputConfig(
            batch_size=size,
            num_workers=number,
            num_threads=_num_threads(),
            pin_memory=bench.on_gpu,
        )
        for size in (64, 1024)[: 2 if bench.on_gpu else 1]
        for number in sorted({max(1, cores // 2), cores})
    ]
    grid = [chosen, *(config for config in others if config != chosen)]
    if len(grid) < 2:
        raise RowError("there is nothing to compare the chosen settings with")
    # There and back: what changes with time is shared by all.
    order = [*grid, *reversed(grid)]
    options = [settings_option(_settings(config)) for config in order]
    found = bench.train("grid", [("images", option, None) for option in options], seconds)
    rates: dict[ThroughputConfig, list[float]] = {}
    for config, training in zip(order, found, strict=True):
        rates.setdefault(config, []).append(training.samples_per_s)
    return gpu_judges.near_best(
        rates.pop(chosen), {config.summary: per_s for config, per_s in rates.items()}
    )


def cuda_first(bench: Bench) -> Verdict:
    tuned = _beside_a_busy_gpu(bench)
    result = tuned.view.result
    modes = [r.start_mode for r in tuned.view.records if r.measurement is not None]
    return gpu_judges.told_reason(
        modes, result.fresh_reason if result else None, output=tuned.output
    )


def interference(bench: Bench) -> Verdict:
    if not has_nvml():
        message = "nvidia-ml-py is not installed"
        return Verdict(passed=None, rule="blocks beside a busy GPU are reported", message=message)
    tuned = _beside_a_busy_gpu(bench)
    result = tuned.view.result
    blocks = [r.measurement.num_blocks for r in tuned.view.records if r.measurement is not None]
    return gpu_judges.disturbed(
        result.num_disturbed if result else 0, sum(blocks), result.disturbed_by if result else ()
    )


def precision(bench: Bench) -> Verdict:
    """Settings that are searched on request, on a model in float32."""
    axes = {"batch_size": [16], "num_workers": [2], "prefetch_factor": [2], "gc": ["default"]}
    axes |= {"num_threads": [_num_threads()], "pin_memory": [True]}
    return _like_training(
        bench,
        "language_model",
        ("--float32", *_threads()),
        budget_s=bench.lasting(60, 40),
        axes=axes | {"matmul_precision": ["default", "high"]},
        axis_set="extended",
    )


def untouched(bench: Bench) -> Verdict:
    return _like_training(bench, "untouched", (), budget_s=bench.lasting(50, 40))


def transformers(bench: Bench) -> Verdict:
    return _framework(bench, "hf_trainer")


def lightning(bench: Bench) -> Verdict:
    return _framework(bench, "lightning_fit")


def ranks(bench: Bench) -> Verdict:
    return _framework(bench, RANKS)


def nccl(bench: Bench) -> Verdict:
    return _framework(bench, RANKS, "--backend", "nccl")


# The most telling first: what the time does not suffice for is at the end.
ROWS = {
    "fork_after_check": Row(title="forked after is_available()", run=fork_after_check),
    "ready_time": Row(title="ready time, forked and cold", run=ready_time),
    "same_rate": Row(title="forked against fresh", run=same_rate),
    "stated_gain": Row(title="stated speed-up against training", run=stated_gain, need_s=30.0),
    "search_time": Row(title="search time (images)", run=search_time),
    "bounds": Row(title="what holds images back", run=bounds, gpu_only=True),
    "out_of_memory": Row(title="out of GPU memory", run=out_of_memory, gpu_only=True, need_s=20.0),
    "pinned": Row(title="pinned memory against not", run=pinned, gpu_only=True, need_s=12.0),
    "cuda_first": Row(
        title="CUDA in use before load_config",
        run=cuda_first,
        gpu_only=True,
        quick=False,
        need_s=20.0,
    ),
    "interference": Row(
        title="beside a busy GPU", run=interference, gpu_only=True, quick=False, need_s=20.0
    ),
    "compiled": Row(title="torch.compile", run=compiled, need_s=40.0),
    "near_best": Row(
        title="chosen against the best of a grid", run=near_best, quick=False, need_s=90.0
    ),
    "precision": Row(title="settings searched on request", run=precision, quick=False, need_s=60.0),
    "untouched": Row(title="a script not touched", run=untouched, quick=False, need_s=60.0),
    "transformers": Row(title="Hugging Face's Trainer", run=transformers, quick=False, need_s=60.0),
    "lightning": Row(title="Lightning", run=lightning, quick=False, need_s=60.0),
    "ranks": Row(title="two ranks on one GPU", run=ranks, quick=False, need_s=80.0),
    "nccl": Row(title="NCCL with one rank", run=nccl, gpu_only=True, quick=False, need_s=80.0),
}


def _compare(bench: Bench, loop: str) -> Comparison:
    return bench.compare_starts(loop, confirm_s=bench.lasting(3, 2), num_rounds=1)


def _framework(bench: Bench, loop: str, *options: str) -> Verdict:
    """A loop with small batches, of which larger ones do as much in an update."""
    if loop != RANKS and importlib.util.find_spec(_PACKAGES[loop]) is None:
        rule, message = "is tuned like any other", f"{_PACKAGES[loop]} is not installed"
        return Verdict(passed=None, rule=rule, message=message)
    axes = {"batch_size": [4, 8, 32], "num_workers": [0, 2], "gc": ["default"]}
    axes |= {"num_threads": [_num_threads()], "prefetch_factor": [2], "pin_memory": [False]}
    return _like_training(bench, loop, options, budget_s=bench.lasting(60, 40), axes=axes)


def _like_training(
    bench: Bench, loop: str, options: Sequence[str], *, budget_s: float, **study: object
) -> Verdict:
    """Tune a script, train it with and without what was found, and compare."""
    brief = {"confirm_rounds": 2, "confirm_s": 2.0, "num_candidates": 1}
    name = "_".join([loop, *(word.strip("-") for word in options if word.isidentifier())])
    tuned = bench.tune(name, loop, *options, budget_s=budget_s, **brief, **study)
    settings = _settings_file(tuned)
    order = (None, settings, settings, None)
    found = bench.train(
        f"{name}_trained", [(loop, options, path) for path in order], bench.lasting(3, 2)
    )
    rates = [training.samples_per_s for training in found]
    result = tuned.view.result
    return gpu_judges.like_training(
        tuned.view.records,
        fresh_reason=result.fresh_reason if result else None,
        stated=tuned.best.speedup,
        trained=[rates[1] / rates[0], rates[2] / rates[3]],
        chosen=tuned.best.config.summary,
        on_gpu=bench.on_gpu,
    )


def _images_budget_s(bench: Bench) -> float:
    return bench.lasting(90, 60)


def _images(bench: Bench) -> Tuned:
    """The run that several rows look at, of a script that asks for a GPU first."""
    return bench.tune(
        "images",
        "images",
        "--check-first",
        *_threads(),
        budget_s=_images_budget_s(bench),
        # Which of the others are searched is autotune's own choice; so is whether memory is pinned.
        axes={"batch_size": [64, 256, 1024], "prefetch_factor": [2], "gc": ["default"]}
        | {"num_threads": [_num_threads()]},
        confirm_rounds=1 if bench.quick else 2,
        confirm_s=2.0,
    )


def _num_threads() -> int:
    return min(4, this_machine().usable_cores)


def _few_axes(*batch_sizes: int) -> dict[str, list[int | bool | str]]:
    """Batch sizes alone."""
    return {
        "batch_size": list(batch_sizes),
        "num_workers": [0],
        "num_threads": [_num_threads()],
        "pin_memory": [False],
        "gc": ["default"],
    }


def _threads() -> tuple[str, str]:
    """The option of a script that the main process computes with few threads."""
    return settings_option({"num_threads": _num_threads()})


def _beside_a_busy_gpu(bench: Bench) -> Tuned:
    """A script that uses the GPU before load_config, beside a process that keeps it busy.

    Two rows look at it: how trials are started does not depend on what else the GPU does.
    """
    with contextlib.ExitStack() as stack:
        if "cuda_first" not in bench.tuned:
            stack.enter_context(bench.hog())
        return bench.tune(
            "cuda_first",
            "tiny_mlp",
            "--cuda-first",
            *_threads(),
            budget_s=bench.lasting(50, 50),
            # Other workers need no other process, other batches do.
            axes=_few_axes(256, 1024) | {"num_workers": [0, 2]},
            max_trials=3,
            # Measured in spite of it: the blocks are what matters.
            allow_busy=True,
            **BRIEF,
        )


def _settings_file(tuned: Tuned) -> Path:
    return tuned.directory / "best_config.yaml"


def _settings(config: ThroughputConfig) -> dict[str, object]:
    return {name: value for name, value in config.to_dict().items() if value is not None}


def _pinned_in_search(tuned: Tuned) -> float | None:
    """Pinned ÷ not, by trials of the search that differ in nothing else; the median."""
    rates: dict[ThroughputConfig, list[float]] = {}
    for record in tuned.searched:
        rates.setdefault(record.config, []).append(record.units_per_s)
    ratios = [
        statistics.median(found) / statistics.median(rates[other])
        for config, found in rates.items()
        if config.pin_memory and (other := dataclasses.replace(config, pin_memory=False)) in rates
    ]
    return statistics.median(ratios) if ratios else None
