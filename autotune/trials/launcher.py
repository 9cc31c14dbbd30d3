"""Starts the user's command, each time as it would run in training."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from autotune.errors import BadInputError
from autotune.ipc.channel import CHANNEL_VARIABLE, Listener
from autotune.ipc.private_directory import TEMPORARY_VARIABLES
from autotune.system.memory import OomWatch
from autotune.torchrun import with_ranks_per_node
from autotune.trials.process_groups import ProcessGroups
from autotune.trials.stacks import STACKS_AT_ABORT

# A killed process is reaped within milliseconds unless it hangs in the kernel.
REAP_DEADLINE_S = 5.0
OUTPUT_PREFIX = "output-"
# Where there are more of these tasks than one, what begins so tells which one this is.
_TASKS = {
    "SLURM_STEP_NUM_TASKS": (
        *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_", "SLURM_NTASKS"),
        *("SLURM_NPROCS", "SLURM_TASKS_PER_NODE", "SLURM_GTIDS", "PMI_", "PMIX_"),
    ),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_", "PMI_", "PMIX_"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command that was started, and may not have called `load_config` yet.

    Attributes:
        process: Its first process.
        start: What its processes introduce themselves with.
        output: File that holds what it prints.
        requested_at_s: Monotonic time at which it was started.
        oom: Began with it.
    """

    process: subprocess.Popen[bytes]
    start: str
    output: Path
    requested_at_s: float
    oom: OomWatch


class Launcher:
    """Starts and ends processes of one command.

    Args:
        command: Program and arguments, as the user would type them.
        groups: Takes charge of every process group that is started.
        listener: Where the processes connect; its directory holds what they print and their
            temporary files.

    Attributes:
        environment: Variables on top of those that the user set.
    """

    def __init__(
        self, command: tuple[str, ...], *, groups: ProcessGroups, listener: Listener
    ) -> None:
        self._command = command
        self._groups = groups
        self._listener = listener
        self._num_starts = 0
        self.environment: Mapping[str, str] = {}

    def new_start(self) -> tuple[str, Path]:
        """What tells the next start from all others, and where its output goes."""
        self._num_starts += 1
        start = str(self._num_starts)
        return start, self._listener.directory / f"{OUTPUT_PREFIX}{start}.txt"

    def launch(
        self, environment: Mapping[str, str], *, ranks_per_node: int | None = None
    ) -> Launch:
        """Start the command.

        Args:
            environment: On top of its usual one.
            ranks_per_node: Of how many ranks on a machine; None for as many as it says.

        Raises:
            BadInputError: The program cannot be started at all, or not with other ranks.
        """
        command = self._command
        if ranks_per_node is not None:
            command = with_ranks_per_node(command, ranks_per_node)
        start, output = self.new_start()
        requested_at_s, oom = time.monotonic(), OomWatch()
        with output.open("wb") as file:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**_inherited(), **self._environment(start), **environment},
                )
            except OSError as error:
                raise BadInputError(
                    f"command: {command[0]} cannot be started: {error.strerror}"
                ) from error
        self._groups.add(process.pid)
        # Where memory runs out, the kernel is to end a trial and not the coordinator. All that a
        # trial starts inherits this. Source: proc_pid_oom_score_adj(5).
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
        return Launch(
            process=process, start=start, output=output, requested_at_s=requested_at_s, oom=oom
        )

    def end(self, process: subprocess.Popen[bytes], grace_s: float) -> int | None:
        """End a started command with all its processes.

        Args:
            process: Its first process.
            grace_s: Seconds in which it may still end by itself.

        Returns:
            Its exit code, if it ended by itself.
        """
        exit_code = _wait(process, grace_s)
        self._groups.end(process.pid)
        _wait(process, REAP_DEADLINE_S)
        self._groups.forget(process.pid)
        return exit_code

    def _environment(self, start: str) -> dict[str, str]:
        return {
            **self.environment,
            **STACKS_AT_ABORT,
            **self._groups.environment,
            **dict.fromkeys(TEMPORARY_VARIABLES, str(self._listener.temporary)),
            CHANNEL_VARIABLE: f"{start}:{self._listener.path}",
        }


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None


def _inherited() -> dict[str, str]:
    """This process's environment; less what makes it one of several tasks of Slurm or Open MPI.

    Runs on several machines (`srun --nodes 4 autotune run`) are no ranks of one training. A
    launcher in the command sets what its own ranks need.
    """
    found = dict(os.environ)
    for size, prefixes in _TASKS.items():
        if found.get(size, "1") != "1":
            found = {name: v for name, v in found.items() if not name.startswith(prefixes)}
    return found
