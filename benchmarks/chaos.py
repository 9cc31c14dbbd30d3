"""Runs under random faults, each started again until it ends: `python benchmarks/chaos.py`.

The loop's step takes the same time for any batch, so that the largest batch is the fastest by far.
While a run goes on, its coordinator, host, trials and loader workers are killed at random moments,
the coordinator is kept from writing, and other processes keep the cores busy. What it prints must
be zeros, but for the faults, and for one trial at most that each of them may cost. A round of the
confirmation that was interrupted counts as one: its runs are open at once, and measured in turn.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import yaml

import autotune
from autotune.system.machine import this_machine
from autotune.system.memory import SHARED_MEMORY

LOOP = """
import time
import torch
import autotune

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 100000
    def __getitem__(self, index):
        return torch.zeros(16)

if __name__ == "__main__":
    default = autotune.ThroughputConfig(batch_size=2, num_threads=1)
    config = autotune.load_config("best_config.yaml", default=default)
    for batch in autotune.steps(config.dataloader(Data())):
        time.sleep(0.01)
"""
BATCHES = (2, 4, 8)
STUDY = {
    "name": "chaos",
    "command": ["python", "train.py"],
    "axes": {
        "batch_size": list(BATCHES),
        "num_workers": [0, 1],
        "prefetch_factor": [2],
        "num_threads": [1],
    },
    "block_s": 0.05,
    "max_blocks": 4,
    "confirm_s": 0.3,
    "confirm_rounds": 2,
    "allow_busy": True,
}
FAULTS = ("coordinator", "terminate", "host", "trial", "worker", "disk", "hog")
# What ends the run, so that it is started again.
ENDING = ("coordinator", "terminate", "disk")
MOST_FAULTS, RUN_S, GONE_S, TARGET_S = 3, 120.0, 1.5, 5.0


@dataclasses.dataclass(slots=True)
class Tally:
    """What was seen over all runs."""

    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seen: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {self.faults[name]}" for name in FAULTS)
        names = (
            "trials lost",
            "trials lost beyond one for a fault",
            "runs that ended otherwise than they should",
            "wrong winners",
            "damaged settings files",
            "processes left",
            "directories left",
            "sockets left",
            "segments left in /dev/shm",
        )
        lines = [f"faults: {self.faults.total()} ({faults})"]
        return "\n".join([*lines, *(f"{name}: {self.seen[name]}" for name in names)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    args = parser.parse_args()
    print(f"machine: {this_machine()}")
    tally = Tally()
    start_s = time.monotonic()
    for number, seed in enumerate(range(args.seed, args.seed + args.runs)):
        if number and number % 10 == 0:
            print(f"{number} of {args.runs} studies", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            before = tally.seen.copy()
            one_study(Path(directory), random.Random(seed), tally)
            wrong = tally.seen - before
            wrong.pop("trials lost", None)
            if wrong:
                print(f"seed {seed}: {dict(wrong)}", flush=True)
    print(f"{args.runs} studies in {time.monotonic() - start_s:.0f} s\n{tally}")


def one_study(directory: Path, chance: random.Random, tally: Tally) -> None:
    """Run one study to its end, whatever happens to it."""
    (directory / "train.py").write_text(LOOP)
    (directory / "study.yaml").write_text(yaml.safe_dump(STUDY))
    outside = leftovers(directory)
    left, num_faults = chance.randint(1, MOST_FAULTS), 0
    while True:
        run = subprocess.Popen(
            [sys.executable, "-m", "autotune", "run", "--study", "study.yaml"],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"TMPDIR": str(directory)},
        )
        fault = None
        with hogs() as start_hog:
            while left and run.poll() is None and fault not in ENDING:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    run.wait(chance.uniform(0.2, 4.0))
                if run.poll() is None:
                    chosen = chance.choice(FAULTS)
                    if inject(chosen, run, start_hog, chance):
                        fault = chosen
                        tally.faults[fault] += 1
                        left, num_faults = left - 1, num_faults + (fault != "hog")
            said, _ = run.communicate(timeout=RUN_S)
        check_settings(directory, tally)
        gone_s = time.monotonic() + GONE_S
        while leftovers(directory) != outside and time.monotonic() < gone_s:
            time.sleep(0.02)
        for name, number in (leftovers(directory) - outside).items():
            tally.seen[name] += number
        expected = {"coordinator": (-9,), "terminate": (130,), "disk": (0, 1, 2)}
        allowed = (0, *expected.get(fault or "", ()), *((1,) if fault in ("host", "trial") else ()))
        if run.returncode not in allowed or "Traceback" in said:
            tally.seen["runs that ended otherwise than they should"] += 1
            print(f"exit code {run.returncode} after {fault}:\n{said}", flush=True)
        if run.returncode == 0:
            break
    trials = autotune.load_study(directory / "studies" / "autotune.db")
    lost = num_lost(trials)
    tally.seen["trials lost"] += lost
    tally.seen["trials lost beyond one for a fault"] += max(0, lost - num_faults)
    if lost > num_faults:
        columns = ["phase", "round_number", "configuration", "state", "cause", "message"]
        print(f"{num_faults} faults:\n{trials[columns].to_string()}", flush=True)
    best = yaml.safe_load((directory / "best_config.yaml").read_text())
    tally.seen["wrong winners"] += best["config"]["batch_size"] != max(BATCHES)


def num_lost(trials: pd.DataFrame) -> int:
    """Trials without figures; neighbours in a round of the confirmation count as one."""
    lost = trials[trials["state"] != "complete"]
    follows = (lost["number"].diff() == 1) & (lost["round_number"].diff() == 0)
    follows &= lost["cause"] == "interrupted"
    return int((~follows.fillna(False)).sum())


def inject(
    fault: str,
    run: subprocess.Popen[str],
    start_hog: Callable[[], object],
    chance: random.Random,
) -> bool:
    """Do what is to be done to a run; says whether there was something to do it to."""
    if run.poll() is not None:
        return False
    if fault == "coordinator":
        run.kill()
    elif fault == "terminate":
        run.terminate()
    elif fault == "disk":
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    elif fault == "hog":
        start_hog()
    else:
        end_s = time.monotonic() + TARGET_S
        while not (targets := targets_in(run.pid, fault)):
            if run.poll() is not None or time.monotonic() > end_s:
                return False
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 0.2))
        try:
            targets[0].kill()
        except psutil.Error:
            return False
    return True


def targets_in(pid: int, kind: str) -> list[psutil.Process]:
    """The hosts, forked trials or loader workers of a coordinator."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    found = [process for process in below if "train.py" in command_of(process)]
    parents = {pid}
    for level in ("host", "trial", "worker"):
        level_found = [process for process in found if parent_of(process) in parents]
        if level == kind:
            return level_found
        parents = {process.pid for process in level_found}
    return []


@contextlib.contextmanager
def hogs() -> Iterator[Callable[[], object]]:
    """Gives what starts a process that keeps a core busy; all end with the context."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield lambda: started.append(
            subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
        )
    finally:
        for hog in started:
            hog.kill()
            hog.wait()


def check_settings(directory: Path, tally: Tally) -> None:
    """The settings file is whole, or not there."""
    path = directory / "best_config.yaml"
    if path.exists():
        try:
            autotune.load_config(path, default=autotune.ThroughputConfig(batch_size=1))
        except autotune.BadInputError as error:
            tally.seen["damaged settings files"] += 1
            print(error)


def leftovers(directory: Path) -> collections.Counter[str]:
    """What a run may leave behind."""
    return collections.Counter(
        {
            "processes left": sum(
                process.info["cwd"] == str(directory) and process.info["status"] != "zombie"
                for process in psutil.process_iter(["cwd", "status"])
            ),
            "directories left": len(list(directory.glob("autotune-*"))),
            "sockets left": Path("/proc/net/unix").read_text().count(f"{directory}/"),
            "segments left in /dev/shm": len(list(SHARED_MEMORY.glob("torch_*"))),
        }
    )


def command_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def parent_of(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return None


if __name__ == "__main__":
    main()
