"""Many forked trials in one run: `python benchmarks/soak.py`.

Prints memory, open files and threads of coordinator and host, and the time that a trial takes, a
line for each hundredth of the trials or so. Nothing may grow.
"""

from __future__ import annotations

import argparse
import statistics
import time

import psutil
from measurement import script

from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode
from autotune.system.memory import SHARED_MEMORY
from autotune.trials.runner import open_runner

CONFIGS = (
    ThroughputConfig(batch_size=8, num_threads=1),
    ThroughputConfig(batch_size=8, num_workers=2, num_threads=1),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--lines", type=int, default=10)
    args = parser.parse_args()
    request = BlockRequest(num_blocks=1, min_s=0.02, settle_s=0.05)
    took_s: list[float] = []
    print(
        f"{'trials':>7} {'median ms':>10} {'coordinator MiB':>16} {'files':>6} {'threads':>8} "
        f"{'host MiB':>9} {'files':>6} {'processes':>10} {'/dev/shm':>9}"
    )
    with open_runner(script("rows"), start_mode=StartMode.FORK, start_deadline_s=60) as runner:
        for number in range(1, args.trials + 1):
            start_s = time.monotonic()
            with runner.start(CONFIGS[number % 2], StartMode.FORK) as trial:
                trial.measure(request, deadline_s=30)
            took_s.append(time.monotonic() - start_s)
            if number % (args.trials // args.lines) == 0:
                show(number, took_s)
                took_s.clear()


def show(number: int, took_s: list[float]) -> None:
    own = psutil.Process()
    below = own.children(recursive=True)
    [host] = [process for process in below if "workloads" in " ".join(process.cmdline())]
    segments = len(list(SHARED_MEMORY.glob("torch_*")))
    print(
        f"{number:7} {1000 * statistics.median(took_s):10.1f} {mebibytes(own):16.1f} "
        f"{own.num_fds():6} {own.num_threads():8} {mebibytes(host):9.1f} {host.num_fds():6} "
        f"{len(below):10} {segments:9}",
        flush=True,
    )


def mebibytes(process: psutil.Process) -> float:
    return process.memory_full_info().uss / 2**20


if __name__ == "__main__":
    main()
