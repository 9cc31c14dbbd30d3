"""Time from the request for a trial to its first batch: forked trials against fresh processes.

Both are measured side by side, in turn, on one machine and in one run, with autotune's own
runner: `python benchmarks/start_up.py`, or for another training loop
`python benchmarks/start_up.py -- python -m mm_rec.train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys

from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.errors import AutotuneError
from autotune.measurement import StartMode
from autotune.study.definition import StudyDefinition
from autotune.system.machine import this_machine
from autotune.trials.runner import Runner, open_runner
from autotune.trials.trial import TrialFailedError

DEADLINE_S = 300.0
# Just enough for a first batch.
FIRST_STEPS = BlockRequest(min_s=0.0, num_blocks=0, settle_s=0.001)
DEFAULT_COMMAND = ("python", "examples/plain_pytorch.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="starts of each kind (default: 5)")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="a training loop")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    definition = StudyDefinition(name="start_up", command=tuple(args.command or DEFAULT_COMMAND))
    print(f"machine: {this_machine()}")
    print(f"command: {definition.command_line}")

    with open_runner(
        definition.runnable_command, start_mode=None, start_deadline_s=DEADLINE_S
    ) as runner:
        compare(runner, args.repeats)


def compare(runner: Runner, repeats: int) -> None:
    # Uncounted: the first fresh start fills the page cache and tells the script's own settings,
    # the first forked one brings up the host.
    runner.start_default().close()
    assert runner.introduction is not None
    default = runner.introduction.default
    if default.num_threads is None:
        # Named, because the host has one thread, and a fork of it would keep that.
        num_threads = runner.introduction.default_num_threads
        default = dataclasses.replace(default, num_threads=num_threads)
    start_up_s(runner, default, StartMode.FORK)
    print(f"both with {default.summary}; seconds from the request to the first batch:\n")

    seconds: dict[StartMode, list[float]] = {StartMode.FORK: [], StartMode.FRESH: []}
    print(f"{'':8}{'forked':>10}{'fresh':>10}")
    for number in range(1, repeats + 1):
        for mode, values in seconds.items():
            values.append(start_up_s(runner, default, mode))
        print(f"{number:<8}" + "".join(f"{values[-1]:10.3f}" for values in seconds.values()))
    forked_s, fresh_s = (statistics.median(values) for values in seconds.values())
    print(f"{'median':8}{forked_s:10.3f}{fresh_s:10.3f}")
    print(f"\na forked trial's first batch comes {fresh_s / forked_s:.1f} times sooner")


def start_up_s(runner: Runner, config: ThroughputConfig, mode: StartMode) -> float:
    with runner.start(config, mode) as trial:
        if trial.mode is not mode:
            raise AutotuneError(f"this command cannot be forked: {runner.fresh_reason}")
        trial.measure(FIRST_STEPS, deadline_s=DEADLINE_S)
        assert trial.start_up_s is not None
        return trial.start_up_s


if __name__ == "__main__":
    try:
        main()
    except TrialFailedError as error:
        sys.exit(error.explain("the command"))
    except AutotuneError as error:
        sys.exit(f"error: {error}")
