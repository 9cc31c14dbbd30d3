"""autotune beside other tuners, under the same wall clock: `python benchmarks/peers.py`.

Each tunes the same loops, and may take the same time. What each chose, and the baseline, are then
compared with what autotune chose: both train side by side in fresh processes, a quarter of a second
each in turn, in four rounds. Ratios have their 95 % interval. The others are installed into an
environment of their own (.peers) the first time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from measurement import no_limits, script
from peer_tools import AXES, BASELINE_BATCH, TOOLS

from autotune.analysis.comparison import choose
from autotune.best_config import read_best_config
from autotune.config import ThroughputConfig
from autotune.intervals import Ratio
from autotune.measurement import Failure, StartMode
from autotune.study.definition import StudyDefinition
from autotune.system.load import QuietKeeper
from autotune.system.machine import this_machine
from autotune.trials.runner import open_runner
from autotune.tuning.rounds import RoundPlan, measure_round

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".peers"
WORKLOADS = ("decoded", "rows", "tokens")
NUM_ROUNDS, PATIENCE = 4, 1.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", action="append", help="of these only; repeatable")
    parser.add_argument("--seconds", type=float, default=120.0, help="wall clock of each tool")
    args = parser.parse_args()
    install()
    print(f"machine: {this_machine()}; {args.seconds:.0f} s for each tool")
    for workload in args.workload or WORKLOADS:
        ours, took_s = run_autotune(workload, args.seconds)
        print(f"\n{workload}\n  {'autotune':10} {took_s:4.0f} s  {ours.summary}", flush=True)
        show(workload, "baseline", 0.0, ThroughputConfig(batch_size=BASELINE_BATCH), ours)
        for tool in TOOLS:
            theirs, took_s = run_peer(tool, workload, args.seconds)
            show(workload, tool, took_s, theirs, ours)


def show(
    workload: str, tool: str, took_s: float, theirs: ThroughputConfig, ours: ThroughputConfig
) -> None:
    """What a tool chose, and how much faster training is with what autotune chose."""
    said = "the same"
    if theirs != ours:
        found = compare(workload, theirs, ours)
        said = "one of them does not train"
        if found is not None:
            said = f"autotune's is {found.ratio:.2f}x ({found.low:.2f} to {found.high:.2f})"
    print(f"  {tool:10} {took_s:4.0f} s  {theirs.summary:50} {said}", flush=True)


def install() -> None:
    """The peers, with this project beside them for its workloads."""
    python = ENVIRONMENT / "bin" / "python"
    if (ENVIRONMENT / ".installed").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    torch = f"torch=={version('torch')}"
    peers = ["ray[tune]", "loadtune", "lightning", "pillow"]
    command = [str(python), "-m", "pip", "install", "--quiet", torch, *peers]
    subprocess.run([*command, "--editable", str(HERE.parent)], check=True)
    (ENVIRONMENT / ".installed").touch()


def version(package: str) -> str:
    """Of a package, without what names its build."""
    return metadata.version(package).partition("+")[0]


def run_autotune(workload: str, seconds: float) -> tuple[ThroughputConfig, float]:
    """What autotune chose in at most so many seconds, or the baseline; and how many it took."""
    axes = [
        option
        for name, values in AXES.items()
        for option in ("--axis", f"{name}={','.join(map(str, values))}")
    ]
    command = [sys.executable, "-m", "autotune", "run", "--quiet", "--budget", f"{seconds:.0f}s"]
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory() as path:
        done = subprocess.run(
            [*command, *axes, "--", *script(workload)], cwd=path, capture_output=True, text=True
        )
        config = ThroughputConfig(batch_size=BASELINE_BATCH)
        if done.returncode:
            print(f"autotune on {workload} failed: {done.stderr.strip().splitlines()[-1:]}")
        else:
            config = read_best_config(Path(path) / "best_config.yaml").config
    return config, time.monotonic() - start_s


def run_peer(tool: str, workload: str, seconds: float) -> tuple[ThroughputConfig, float]:
    """The same of another tool; the baseline where it failed or did not come to an end."""
    command = [str(ENVIRONMENT / "bin" / "python"), str(HERE / "peer_tools.py"), tool, workload]
    start_s = time.monotonic()
    settings = {"batch_size": BASELINE_BATCH}
    with subprocess.Popen(
        [*command, "--seconds", str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            answer, said = process.communicate(timeout=PATIENCE * seconds)
            settings = json.loads(answer)
        except subprocess.TimeoutExpired:
            print(f"{tool} on {workload}: no answer within {PATIENCE * seconds:.0f} s")
        except ValueError:
            print(f"{tool} on {workload} failed: {said.strip().splitlines()[-1:]}")
        took_s = time.monotonic() - start_s
        # With whatever it has left running.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return ThroughputConfig(**settings), took_s


def compare(workload: str, theirs: ThroughputConfig, ours: ThroughputConfig) -> Ratio | None:
    """Throughput of ours ÷ that of theirs; None where a run of either failed."""
    command = tuple(script(workload))
    definition = StudyDefinition(name=workload, command=command)
    plan = RoundPlan(
        definition=definition,
        limits_of=lambda _: no_limits(),
        keeper=QuietKeeper(120.0),
        side_by_side=True,
        probed=False,
    )
    rates: dict[ThroughputConfig, list[float]] = {theirs: [], ours: []}
    shuffle = random.Random(0)
    with open_runner(command, start_mode=StartMode.FRESH, start_deadline_s=120.0) as runner:
        for _ in range(NUM_ROUNDS):
            runner.launch_ahead(2)
            found = measure_round(
                (theirs, ours), lambda config: runner.start(config, StartMode.FRESH), plan, shuffle
            )
            for config, outcome in found.items():
                if not isinstance(outcome, Failure):
                    rates[config].append(outcome.measurement.samples_per_s)
    if min(map(len, rates.values())) < NUM_ROUNDS:
        return None
    return choose(rates, theirs).speedup


if __name__ == "__main__":
    main()
