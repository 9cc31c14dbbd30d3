"""autotune beside other tuners, under the same wall clock: `python benchmarks/peers.py`.

Each tunes the same loops, and may take the same time; what each chose is then trained with, all of
them side by side in fresh processes, a quarter of a second each in turn, in five rounds. The others
are installed into an environment of their own (.peers) the first time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from measurement import no_limits, script
from peer_tools import AXES, BASELINE_BATCH, TOOLS

from autotune.best_config import read_best_config
from autotune.config import ThroughputConfig
from autotune.machine import this_machine
from autotune.measurement import Failure, StartMode
from autotune.search.definition import StudyDefinition
from autotune.search.rounds import RoundPlan, measure_round
from autotune.trials.neighbours import QuietKeeper
from autotune.trials.runner import open_runner

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".peers"
WORKLOADS = ("decoded", "rows", "tokens")
NUM_ROUNDS, PATIENCE = 5, 1.5


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
        found = {"baseline": (ThroughputConfig(batch_size=BASELINE_BATCH), 0.0)}
        found["autotune"] = run_autotune(workload, args.seconds)
        for tool in TOOLS:
            found[tool] = run_peer(tool, workload, args.seconds)
        rates = measure(workload, [config for config, _ in found.values()])
        best = max(rates.values())
        print(f"\n{workload}")
        for tool, (config, took_s) in found.items():
            rate = rates[config]
            print(
                f"  {tool:10} {took_s:4.0f} s  {config.summary:50} {rate:10,.0f} samples/s, "
                f"{100 * (1 - rate / best):4.1f} % below the best",
                flush=True,
            )


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
    """What autotune chose in at most so many seconds, and how many it took."""
    axes = [
        option
        for name, values in AXES.items()
        for option in ("--axis", f"{name}={','.join(map(str, values))}")
    ]
    command = [sys.executable, "-m", "autotune", "run", "--quiet", "--budget", f"{seconds:.0f}s"]
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory() as path:
        subprocess.run(
            [*command, *axes, "--", *script(workload)], cwd=path, check=True, capture_output=True
        )
        best = read_best_config(Path(path) / "best_config.yaml")
    return best.config, time.monotonic() - start_s


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


def measure(workload: str, configs: list[ThroughputConfig]) -> dict[ThroughputConfig, float]:
    """Samples per second of each, medians of the rounds."""
    command = tuple(script(workload))
    definition = StudyDefinition(name=workload, command=command)
    plan = RoundPlan(
        definition=definition,
        limits_of=lambda _: no_limits(),
        keeper=QuietKeeper(120.0),
        side_by_side=True,
        probed=False,
    )
    logs: dict[ThroughputConfig, list[float]] = {}
    shuffle = random.Random(0)
    with open_runner(command, start_mode=StartMode.FRESH, start_deadline_s=120.0) as runner:
        distinct = list(dict.fromkeys(configs))
        for _ in range(NUM_ROUNDS):
            runner.launch_ahead(len(distinct))
            found = measure_round(
                distinct,
                lambda config: runner.start(config, StartMode.FRESH),
                plan,
                shuffle,
            )
            for config, outcome in found.items():
                rate = 1e-9
                if not isinstance(outcome, Failure):
                    rate = outcome.measurement.samples_per_s
                logs.setdefault(config, []).append(math.log(rate))
    return {config: math.exp(statistics.median(values)) for config, values in logs.items()}


if __name__ == "__main__":
    main()
