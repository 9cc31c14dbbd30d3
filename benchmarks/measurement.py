"""How far autotune's figures can be trusted: `python benchmarks/measurement.py`.

Each part runs alone on the machine and prints what it found; `--only NAME` runs one of them:

  equal          two equal configurations: does the interval of their ratio contain 1?
  fixed          a loop whose speed no setting changes
  repeatability  one configuration in ten separate studies, beside a naive measurement
  promise        stated throughput against a minute of ordinary training
  gain           stated speed-up against that of ordinary training
  interference   whole runs on a quiet machine, and beside a CPU hog
  trap           a loader-bound loop whose prefetch buffer is full at first
  forks          forked trials against fresh processes, on unlike loops
  collector      training with Python's garbage collector as it is, frozen, and raised
  instrument     what timing costs a loop
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from autotune.analysis.comparison import Choice, choose
from autotune.best_config import read_best_config
from autotune.blocks import BlockRequest
from autotune.collector import COLLECTORS
from autotune.config import ThroughputConfig
from autotune.intervals import RunSpread
from autotune.measurement import Failure, Measurement, StartMode
from autotune.report.study_view import open_view
from autotune.study.definition import StudyDefinition
from autotune.system.load import QuietKeeper
from autotune.system.machine import this_machine
from autotune.trials.runner import Runner, open_runner
from autotune.trials.trial import Trial, TrialFailedError
from autotune.tuning.rounds import RoundPlan, measure_round
from autotune.tuning.trial_runs import Limits, run_short

WORKLOADS = Path(__file__).with_name("workloads.py").resolve()
LONG_S = 3600.0
START_S = 120.0
BASELINE = ThroughputConfig(batch_size=32)
# Loops that have little in common: what they compute, how they load, what that makes of objects.
LOOPS = {
    "tiny rows, a worker": (
        "records",
        ThroughputConfig(batch_size=4096, num_workers=1, num_threads=1),
    ),
    "tiny rows": ("records", ThroughputConfig(batch_size=4096, num_threads=1)),
    "large arrays": ("arrays", ThroughputConfig(batch_size=16, num_workers=1, num_threads=1)),
    "JPEG decoder": ("decoded", ThroughputConfig(batch_size=64, num_workers=2, num_threads=1)),
    "sleeping loader": ("storage", ThroughputConfig(batch_size=64, num_workers=4, num_threads=1)),
    "lists in the step": ("lists", ThroughputConfig(batch_size=256, num_threads=1)),
    "language model": ("tokens", ThroughputConfig(batch_size=16, num_threads=2)),
    "augmentation": ("images", ThroughputConfig(batch_size=64, num_workers=2, num_threads=1)),
}


def main() -> None:
    parts = {
        "equal": equal,
        "fixed": fixed,
        "repeatability": repeatability,
        "promise": promise,
        "gain": gain,
        "interference": interference,
        "trap": trap,
        "forks": forks,
        "collector": collector,
        "instrument": instrument,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=parts, help="run this part alone")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the repeats to run")
    args = parser.parse_args()
    if not 0 < args.scale <= 1:
        parser.error("--scale must be above 0 and at most 1")
    print(f"machine: {this_machine()}, {datetime.now():%Y-%m-%d %H:%M}")
    for name in [args.only] if args.only else parts:
        start_s = time.monotonic()
        print(f"\n{name}: {parts[name].__doc__}", flush=True)
        parts[name](args.scale)
        print(f"({time.monotonic() - start_s:.0f} s)", flush=True)


def equal(scale: float) -> None:
    """Two equal configurations, in three rounds of fresh processes."""
    # An inter-op pool that nothing uses makes two configurations of one.
    pairs = {
        "images": ThroughputConfig(batch_size=64, num_workers=2, num_threads=1),
        "tokens": ThroughputConfig(batch_size=16, num_threads=2),
    }
    contained = num_pairs = false_alarms = 0
    ratios, widths = [], []
    for number in range(scaled(20, scale)):
        for workload, config in pairs.items():
            twin = dataclasses.replace(config, num_interop_threads=2)
            choice = confirm(workload, config, [twin], seed=number, confirm_s=2.0)
            speedup = choice.speedup
            contained += speedup.low <= 1 <= speedup.high
            false_alarms += speedup.significant
            ratios.append(math.log(speedup.ratio))
            widths.append(math.log(speedup.high / speedup.low) / 2)
            num_pairs += 1
    print(
        f"  interval of the ratio contains 1 in {contained} of {num_pairs}; {false_alarms} called "
        f"a gain; half width {statistics.median(widths):.3f} in the median, true error "
        f"{root_mean_square(ratios):.3f} (root mean square of log ratios)"
    )


def fixed(scale: float) -> None:
    """Whole runs on a loop whose speed no setting changes: a fixed sleep per sample."""
    num_runs = scaled(3, scale)
    answers = []
    for _ in range(num_runs):
        with directory() as path:
            printed = run_autotune(path, "fixed", ["batch_size=8,16,32"])
            best = read_best_config(path / "best_config.yaml")
            answers.append("no significant gain" in printed and not best.speedup.significant)
    print(f"  no significant gain in {sum(answers)} of {num_runs} runs")


def repeatability(scale: float) -> None:
    """One configuration in ten separate studies; naive: the first 20 steps of a fresh process."""
    config = ThroughputConfig(batch_size=64, num_threads=2)
    stated, naive = [], []
    for _ in range(scaled(10, scale)):
        with directory() as path:
            axes = ("batch_size=64", "num_workers=0", "num_threads=2")
            run_autotune(path, "images", axes, baseline=config)
            stated.append(read_best_config(path / "best_config.yaml").expected.samples_per_s)
        naive.append(train("images", config, "--steps", "20"))
    for name, values in (("stated", stated), ("naive", naive)):
        low, *_, high = statistics.quantiles(values, n=10) if len(values) > 1 else values * 3
        print(
            f"  {name:7} p90/p10 {high / low:.2f}; median {statistics.median(values):,.0f} "
            f"({min(values):,.0f} to {max(values):,.0f}) samples/s"
        )


def promise(scale: float) -> None:
    """Stated throughput, and 60 s of ordinary training with the same settings."""
    make = ThroughputConfig
    settings = {
        "images": [
            make(batch_size=32, num_threads=2),
            make(batch_size=128, num_threads=2),
            make(batch_size=64, num_workers=1, num_threads=1),
            make(batch_size=128, num_workers=2, num_threads=1),
            make(batch_size=128, num_workers=4, prefetch_factor=8, num_threads=2),
        ],
        "tokens": [
            make(batch_size=4, num_threads=1),
            make(batch_size=4, num_threads=2),
            make(batch_size=32, num_threads=1),
            make(batch_size=32, num_threads=2),
            make(batch_size=32, num_workers=1, num_threads=2),
        ],
        "storage": [
            make(batch_size=16, num_threads=1),
            make(batch_size=16, num_workers=2, num_threads=1),
            make(batch_size=64, num_workers=4, num_threads=1),
            make(batch_size=64, num_workers=8, prefetch_factor=4, num_threads=1),
            make(batch_size=256, num_workers=8, num_threads=2),
        ],
    }
    kept, widths = 0, []
    for workload, configs in settings.items():
        configs = configs[: scaled(5, scale)]
        runs = in_rounds(workload, configs, seed=0)
        stated = choose(rates_of(runs), configs[0], spread=searched_spread(workload, configs))
        for config in configs:
            rate = stated.rates[config]
            seconds = max(5.0, 60.0 * scale)
            trained = train(workload, config, "--seconds", str(seconds))
            ratio = trained / rate.mean
            inside = rate.low <= trained <= rate.high or abs(ratio - 1) <= 0.03
            kept += inside
            widths.append(math.log(rate.high / rate.low) / 2)
            print(
                f"  {workload:8} {config.summary:45} stated {rate.mean:8,.0f} ({rate.low:,.0f} to "
                f"{rate.high:,.0f}), trained {trained:8,.0f}: {ratio:.2f}"
                + ("" if inside else "  BROKEN"),
                flush=True,
            )
    print(
        f"  kept in {kept} of {len(widths)}; half width {100 * statistics.median(widths):.0f} % in "
        "the median"
    )


def searched_spread(workload: str, configs: Sequence[ThroughputConfig]) -> RunSpread | None:
    """How much runs differ, by a whole run of autotune on this workload."""
    with directory() as path:
        axes = [
            f"{name}=" + ",".join(map(str, sorted({getattr(config, name) for config in configs})))
            for name in ("batch_size", "num_workers", "num_threads")
        ]
        run_autotune(path, workload, axes, baseline=configs[0])
        view = open_view(str(path / "studies" / "autotune.db"))
    assert view.estimates is not None
    return view.estimates.run_spread


def gain(scale: float) -> None:
    """Whole runs; then ordinary training with the baseline and the chosen settings, in turn."""
    for workload, axes in {
        "idle": ("batch_size=16,32,64",),
        "images": ("batch_size=32,128", "num_workers=0,1,2", "prefetch_factor=2"),
        "tokens": ("batch_size=4,32", "num_workers=0,1", "prefetch_factor=2"),
    }.items():
        with directory() as path:
            run_autotune(path, workload, axes)
            best = read_best_config(path / "best_config.yaml")
        stated = best.speedup
        if not stated.significant:
            print(f"  {workload:8} no significant gain ({stated.low:.2f} to {stated.high:.2f})")
            continue
        ratios = []
        for _ in range(scaled(4, scale)):
            rates = [
                train(workload, config, "--seconds", "12")
                for config in (best.baseline.config, best.config)
            ]
            ratios.append(rates[1] / rates[0])
        print(
            f"  {workload:8} {best.config.summary:45} stated {stated.ratio:.2f}x "
            f"({stated.low:.2f} to {stated.high:.2f}), trained {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def interference(scale: float) -> None:
    """Whole runs, quiet and with a hog on one core for 5 s of every 15 s, in turn."""
    axes = ("batch_size=32,128", "num_workers=0,2", "prefetch_factor=2", "num_threads=1,2")
    rates: dict[str, list[float]] = {"quiet": [], "hog": []}
    for _ in range(scaled(3, scale)):
        for name, values in rates.items():
            with directory() as path, hog() if name == "hog" else contextlib.nullcontext():
                printed = run_autotune(path, "images", axes)
                best = read_best_config(path / "best_config.yaml")
            values.append(best.expected.samples_per_s)
            told = [line for line in printed.splitlines() if "disturbed" in line]
            expected = best.expected
            print(
                f"  {name:6} {best.config.summary:45} {expected.samples_per_s:8,.0f} "
                f"({expected.samples_per_s_low:,.0f} to {expected.samples_per_s_high:,.0f}) "
                f"samples/s, {best.speedup.ratio:.2f}x; {told[0][:100] if told else 'quiet'}",
                flush=True,
            )
    ratio = statistics.median(rates["hog"]) / statistics.median(rates["quiet"])
    print(f"  stated beside the hog ÷ quiet: {ratio:.3f} (medians)")


def trap(scale: float) -> None:
    """4 workers x prefetch 8, loader-bound by sleeping; against 20 s of ordinary training."""
    config = ThroughputConfig(batch_size=4, num_workers=4, prefetch_factor=8, num_threads=1)
    naive, ours = [], []
    truth = [train("trap", config, "--seconds", "20") for _ in range(scaled(3, scale))]
    with runner_of("trap") as (runner, definition):
        for _ in range(scaled(5, scale)):
            with runner.start(config, StartMode.FORK) as trial:
                outcome = run_short(
                    trial,
                    definition,
                    num_blocks=definition.max_blocks,
                    incumbent=0.0,
                    limits=no_limits(),
                    keeper=QuietKeeper(60.0),
                )
            ours.append(outcome.measurement.samples_per_s)
            naive.append(naive_rate(runner, config))
    true = statistics.median(truth)
    print(f"  20 s of training: {true:,.0f} samples/s ({min(truth):,.0f} to {max(truth):,.0f})")
    for name, values in (("20 steps after the first, naive", naive), ("a trial of ours", ours)):
        over = [100 * (value / true - 1) for value in values]
        print(
            f"  {name}: {statistics.median(over):+.1f} % ({min(over):+.1f} to {max(over):+.1f}) "
            "against it"
        )


def naive_rate(runner: Runner, config: ThroughputConfig) -> float:
    """Samples per second of the 20 steps after the first."""
    with runner.start(config, StartMode.FORK) as trial:
        # The first step goes uncounted, because it is long.
        twenty = BlockRequest(min_s=0.0, multiple_of=20)
        block = trial.measure(twenty, deadline_s=60.0).blocks[0]
        return block.num_samples / block.duration_s


def forks(scale: float) -> None:
    """The same settings forked ÷ fresh, measured in turn: rate, and CPU seconds per sample."""
    for name, (workload, config) in LOOPS.items():
        # Two configurations of one, as above; here they tell how they are started.
        twin = dataclasses.replace(config, num_interop_threads=2)
        modes = {config: StartMode.FRESH, twin: StartMode.FORK}
        runs: dict[ThroughputConfig, list[Measurement]] = {config: [], twin: []}
        for number in range(scaled(5, scale)):
            # A host of its own for each: its forks share what chance gave that process. And long
            # enough for many full collections of the heap: each takes as long as several steps.
            for which, found in in_rounds(
                workload, (config, twin), seed=number, rounds=1, confirm_s=6.0, modes=modes
            ).items():
                runs[which] += found
        ratio = choose(rates_of(runs), config).speedup
        fresh, forked = (
            statistics.median(run.cpu_s_per_sample for run in runs[which])
            for which in (config, twin)
        )
        print(
            f"  {name:19} {ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), "
            f"CPU {forked / fresh:.3f}",
            flush=True,
        )


def collector(scale: float) -> None:
    """Ordinary training, in turn, with each garbage collector ÷ the default; medians."""
    # CPU seconds per sample beside the rate: they say the same on a machine that is not quiet.
    seconds = max(2.0, 8.0 * scale)
    options = ("--warm-up", "3", "--seconds", str(seconds))
    print(f"  {'':19} {'samples/s':>9} " + "".join(f"{name:>36}" for name in COLLECTORS[1:]))
    for name, (workload, config) in LOOPS.items():
        found: dict[str, list[dict[str, float]]] = {setting: [] for setting in COLLECTORS}
        for _ in range(scaled(5, scale)):
            for setting, runs in found.items():
                changed = dataclasses.replace(config, gc=setting)
                runs.append(training_figures(workload, changed, *options))
        plain = found[COLLECTORS[0]]
        cells = []
        for setting in COLLECTORS[1:]:
            # Runs that follow each other share the machine's drift.
            pairs = list(zip(plain, found[setting], strict=True))
            rates = [b["samples_per_s"] / a["samples_per_s"] for a, b in pairs]
            cpu = statistics.median(b["cpu_s_per_sample"] / a["cpu_s_per_sample"] for a, b in pairs)
            span = f"({min(rates):.2f} to {max(rates):.2f})"
            cells.append(f"{statistics.median(rates):.2f}x {span}, CPU {cpu:.2f}x")
        rate = statistics.median(run["samples_per_s"] for run in plain)
        print(f"  {name:19} {rate:9,.0f} " + "".join(f"{cell:>36}" for cell in cells), flush=True)


def instrument(scale: float) -> None:
    """Seconds that a step with an empty body takes, and the coordinator's CPU during a block."""
    import autotune

    batches = [[0.0] * 4] * 100_000
    start_s = time.perf_counter()
    for _ in batches:
        pass
    plain_s = time.perf_counter() - start_s
    start_s = time.perf_counter()
    for _ in autotune.steps(batches):
        pass
    trained_s = time.perf_counter() - start_s
    print(f"  ordinary training: {1e6 * (trained_s - plain_s) / len(batches):+.3f} µs a step")

    code = (
        "import autotune\n"
        "default = autotune.ThroughputConfig(batch_size=4)\n"
        "autotune.load_config(None, default=default)\n"
        "for batch in autotune.steps([[0.0] * 4] * 1_000_000): pass\n"
    )
    with (
        open_runner(
            (sys.executable, "-c", code), start_mode=None, start_deadline_s=START_S
        ) as runner,
        runner.start(ThroughputConfig(batch_size=4), StartMode.FORK) as trial,
    ):
        request = BlockRequest(min_s=1.0, settle_s=0.5)
        block = trial.measure(request, deadline_s=60.0).blocks[0]
        step_s = block.duration_s / block.num_steps - plain_s / len(batches)
        print(f"  in a trial: {1e6 * step_s:.2f} µs a step, {step_s / 0.01:.3%} of 10 ms")
        for num_blocks in (1, max(2, scaled(20, scale))):
            before_s = time.process_time()
            trial.measure(BlockRequest(min_s=0.5, num_blocks=num_blocks), deadline_s=60.0)
            used_s = time.process_time() - before_s
            print(
                f"  coordinator's CPU for a request of {num_blocks} blocks of 0.5 s: "
                f"{1e3 * used_s:.1f} ms"
            )


def confirm(
    workload: str,
    baseline: ThroughputConfig,
    candidates: Sequence[ThroughputConfig],
    *,
    seed: int,
    confirm_s: float | None = None,
) -> Choice:
    """Confirm these configurations as a study would, in three rounds of fresh processes."""
    runs = in_rounds(workload, (baseline, *candidates), seed=seed, confirm_s=confirm_s)
    return choose(rates_of(runs), baseline)


def rates_of(
    runs: dict[ThroughputConfig, list[Measurement]],
) -> dict[ThroughputConfig, list[float]]:
    return {config: [run.units_per_s for run in found] for config, found in runs.items()}


def in_rounds(
    workload: str,
    configs: Sequence[ThroughputConfig],
    *,
    seed: int,
    rounds: int = 3,
    confirm_s: float | None = None,
    modes: dict[ThroughputConfig, StartMode] | None = None,
) -> dict[ThroughputConfig, list[Measurement]]:
    """Measure configurations in rounds as a confirmation does; one run of each in a round."""
    runs: dict[ThroughputConfig, list[Measurement]] = {config: [] for config in configs}
    shuffle = random.Random(seed)
    with runner_of(workload) as (runner, definition):
        if confirm_s is not None:
            definition = dataclasses.replace(definition, confirm_s=confirm_s)
        plan = RoundPlan(
            definition=definition,
            limits_of=lambda _: no_limits(),
            keeper=QuietKeeper(120.0),
            side_by_side=True,
            probed=False,
        )

        def start(config: ThroughputConfig) -> Trial:
            return runner.start(config, (modes or {}).get(config, StartMode.FRESH))

        for _ in range(rounds):
            for config, found in measure_round(configs, start, plan, shuffle).items():
                if isinstance(found, Failure):
                    raise TrialFailedError(found)
                runs[config].append(found.measurement)
    return runs


@contextlib.contextmanager
def runner_of(workload: str) -> Iterator[tuple[Runner, StudyDefinition]]:
    command = tuple(script(workload))
    with open_runner(command, start_mode=None, start_deadline_s=START_S) as runner:
        yield runner, StudyDefinition(name=workload, command=command)


def no_limits() -> Limits:
    return Limits(step_s=None, first_step_deadline_s=START_S, end_s=time.monotonic() + LONG_S)


def run_autotune(
    path: Path, workload: str, axes: Sequence[str], *, baseline: ThroughputConfig = BASELINE
) -> str:
    """Run the whole tool in a directory; gives what it printed."""
    options = [option for axis in axes for option in ("--axis", axis)]
    tool = [sys.executable, "-m", "autotune", "run", "--quiet", *options]
    command = [*tool, "--", *script(workload, baseline)]
    done = subprocess.run(command, cwd=path, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def train(workload: str, config: ThroughputConfig, *options: str) -> float:
    """Samples per second of ordinary training with these settings."""
    return training_figures(workload, config, *options)["samples_per_s"]


def training_figures(workload: str, config: ThroughputConfig, *options: str) -> dict[str, float]:
    """What workloads.py prints of ordinary training with these settings."""
    command = [*script(workload, config), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def script(workload: str, config: ThroughputConfig = BASELINE) -> list[str]:
    settings = json.dumps(dataclasses.asdict(config))
    return [sys.executable, str(WORKLOADS), workload, "--config", settings]


@contextlib.contextmanager
def hog() -> Iterator[None]:
    """Another process that uses a whole core for 5 s of every 15 s."""
    code = (
        "import time\n"
        "while True:\n"
        "    end = time.monotonic() + 5\n"
        "    while time.monotonic() < end: pass\n"
        "    time.sleep(10)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def scaled(number: int, scale: float) -> int:
    return max(1, round(number * scale))


def root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(statistics.mean(value**2 for value in values))


if __name__ == "__main__":
    main()
