"""Schedulers: each starts one run on each of some machines, and says how it goes."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import importlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from autotune.errors import BadInputError, CommandError

# Of what a run that failed printed, so many lines are shown.
_NUM_LINES = 5
# What a run may take beyond its budget before its scheduler ends it, in minutes.
_SLACK_MIN = 15
# A job that left the queue so many looks ago, and left no result, was killed or lost.
_LOOKS_UNTIL_GONE = 6
# A run that is to end stores what it has in less.
_ENDING_S = 20.0


class EngineName(enum.StrEnum):
    """What starts the runs."""

    SLURM = "slurm"
    RAY = "ray"
    LOCAL = "local"


class State(enum.StrEnum):
    """How a run goes."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    LOST = "machine lost"


class Job(Protocol):
    """A run on one machine.

    Attributes:
        name: The machine's, or the scheduler's of the job until that is known.
    """

    @property
    def name(self) -> str:
        """See above."""

    def state(self) -> State:
        """How it goes."""

    def reason(self) -> str:
        """Why it failed, on a few lines."""

    def cancel(self) -> None:
        """End it; what it measured is kept."""


class SubmititJob:
    """A job of Slurm, or a process of this machine, by submitit."""

    def __init__(self, job: Any, *, is_of_slurm: bool) -> None:  # noqa: ANN401
        self._job = job
        self._is_of_slurm = is_of_slurm
        self._looks_gone = 0

    @property
    def name(self) -> str:
        """See `Job`."""
        with contextlib.suppress(Exception):
            nodes = self._job.get_info(mode="cache").get("NodeList")
            if nodes and nodes != "None assigned":
                return str(nodes)
        return f"job {self._job.job_id}"

    def state(self) -> State:
        """See `Job`."""
        if not self._job.done() and self._job.state == "UNKNOWN" and self._is_of_slurm:
            return self._queued()
        if not self._job.done():
            waits = self._job.state in ("PENDING", "UNKNOWN", "CONFIGURING", "REQUEUED")
            return State.WAITING if waits else State.RUNNING
        if self._job.state == "NODE_FAIL":
            return State.LOST
        return State.FAILED if self._job.exception() is not None else State.DONE

    def _queued(self) -> State:
        """What the queue says, where Slurm keeps no accounts."""
        command = ("squeue", "--noheader", "--format=%T", f"--jobs={self._job.job_id}")
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if found:
            return State.WAITING if found in ("PENDING", "CONFIGURING") else State.RUNNING
        # It left the queue; what it leaves behind may take a moment on a network's file system.
        self._looks_gone += 1
        return State.RUNNING if self._looks_gone < _LOOKS_UNTIL_GONE else State.LOST

    def reason(self) -> str:
        """See `Job`."""
        printed = _last_lines(self._job.stderr() or "")
        if printed or not self._job.done():
            return printed
        return _last_lines(str(self._job.exception()))

    def cancel(self) -> None:
        """See `Job`."""
        if not self._job.done():
            self._job.cancel(check=False)


class RayJob:
    """A task of Ray that has a whole node."""

    def __init__(self, ray: Any, reference: Any, node: Mapping[str, Any]) -> None:  # noqa: ANN401
        self._ray, self._reference = ray, reference
        self.name = f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})"
        self._failure: Exception | None = None

    def state(self) -> State:
        """See `Job`."""
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return State.RUNNING
        try:
            self._ray.get(self._reference)
        except Exception as failure:
            # Ray raises what the task raised, and errors of its own for tasks that are gone.
            self._failure = failure
            of_task = (self._ray.exceptions.RayTaskError, self._ray.exceptions.TaskCancelledError)
            return State.FAILED if isinstance(failure, of_task) else State.LOST
        return State.DONE

    def reason(self) -> str:
        """See `Job`."""
        return _last_lines(str(self._failure or ""))

    def cancel(self) -> None:
        """See `Job`."""
        self._ray.cancel(self._reference, force=False)


@contextlib.contextmanager
def submit(
    engine: EngineName,
    arguments: Sequence[str],
    *,
    num_machines: int | None,
    budget_s: float,
    options: Mapping[str, str],
    folder: Path,
) -> Iterator[list[Job]]:
    """Start a run on each of some machines.

    Args:
        engine: What starts them.
        arguments: Of `autotune run`.
        num_machines: How many; None for all that a Ray cluster has, and one elsewhere.
        budget_s: What a run may take.
        options: The scheduler's own, by name: `partition`, `gres`, …
        folder: Where the scheduler keeps what the runs print.

    Raises:
        BadInputError: The engine is not installed, or there are not so many machines.
        CommandError: The scheduler cannot be reached, or refuses.
    """
    if engine is EngineName.RAY:
        with _ray(arguments, num_machines, options) as jobs:
            yield jobs
    else:
        yield _submitit(engine, arguments, num_machines or 1, budget_s, options, folder)


def _submitit(
    engine: EngineName,
    arguments: Sequence[str],
    num_machines: int,
    budget_s: float,
    options: Mapping[str, str],
    folder: Path,
) -> list[Job]:
    submitit = _import("submitit", engine)
    # Where Slurm keeps no accounts, it would say so at each look.
    logging.getLogger("submitit").setLevel(logging.ERROR)
    if engine is EngineName.LOCAL and options:
        raise BadInputError(f"--option {next(iter(options))}: the local engine has no options")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=engine.value)
        executor.update_parameters(
            name="autotune",
            nodes=1,
            tasks_per_node=1,
            timeout_min=int(budget_s / 60) + _SLACK_MIN,
            # A run measures a machine, and has it for itself.
            slurm_exclusive="",
            slurm_mem="0",
            slurm_additional_parameters=dict(options),
        )
        function = submitit.helpers.CommandFunction(
            [sys.executable, "-m", "autotune", "run", *arguments],
            verbose=False,
            # A local job of submitit would see no GPUs.
            env=dict(os.environ) if engine is EngineName.LOCAL else None,
        )
        with executor.batch():
            jobs = [executor.submit(function) for _ in range(num_machines)]
    except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
        raise CommandError(f"{engine}: cannot start the runs: {error}") from error
    return [SubmititJob(job, is_of_slurm=engine is EngineName.SLURM) for job in jobs]


@contextlib.contextmanager
def _ray(
    arguments: Sequence[str], num_machines: int | None, options: Mapping[str, str]
) -> Iterator[list[Job]]:
    ray = _import("ray", EngineName.RAY)
    address = options.get("address", "auto")
    if unknown := set(options) - {"address"}:
        raise BadInputError(f"--option {unknown.pop()}: Ray has address=HOST:PORT only")
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CommandError(
            f"ray: no cluster at {address}: start one (`ray start --head`), or name it with "
            "--option address=HOST:PORT"
        ) from error
    try:
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if num_machines is not None and num_machines > len(nodes):
            raise BadInputError(f"--machines {num_machines}: the Ray cluster has {len(nodes)}")
        yield [_ray_job(ray, node, arguments) for node in nodes[:num_machines]]
    finally:
        ray.shutdown()


def _ray_job(ray: Any, node: Mapping[str, Any], arguments: Sequence[str]) -> RayJob:  # noqa: ANN401
    """All of a node for one run; a node that dies takes its run with it."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    resources = node["Resources"]
    task = ray.remote(run_on_node).options(
        num_cpus=resources["CPU"],
        # Without, Ray would hide the GPUs.
        num_gpus=resources.get("GPU", 0),
        max_retries=0,
        scheduling_strategy=here,
    )
    return RayJob(ray, task.remote(tuple(arguments), str(Path.cwd())), node)


def run_on_node(arguments: Sequence[str], folder: str) -> None:
    """A run as a child of one of Ray's workers.

    Raises:
        RuntimeError: It failed; the message is the end of what it printed.
    """
    environment = dict(os.environ)
    # Ray's own, for its many small workers: a training that begins here would have one thread.
    if environment.get("OMP_NUM_THREADS") == "1":
        del environment["OMP_NUM_THREADS"]
    with subprocess.Popen(
        [sys.executable, "-m", "autotune", "run", *arguments],
        cwd=folder if Path(folder).is_dir() else None,
        env=environment,
        preexec_fn=_end_with_parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_S)
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(_last_lines(output))


def _end_with_parent() -> None:
    """Have the system interrupt this process when its parent ends, however that does.

    Source: prctl(2), PR_SET_PDEATHSIG = 1. Elsewhere than on Linux a run goes on by itself.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGINT)


def _import(name: str, engine: EngineName) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInputError(
            f"--engine {engine}: needs {name}: pip install 'autotune[fleet]'"
        ) from error


def _last_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_NUM_LINES:])
