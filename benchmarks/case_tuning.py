"""One `autotune run` on a case, as a user starts it, and everything that it left."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.case_training import MARK, case_environment, end_marked, fill_in, marked_processes

_SHARED_MEMORY = Path("/dev/shm")
# A run that does not end is ended so many seconds after its budget.
_PATIENCE_S, _GONE_S = 45.0, 3.0
# The cache of compiled code that torch keeps for all later processes, plain training included.
_TORCH_CACHE = "torchinductor_"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a run did.

    Attributes:
        exit_code: None where it had to be ended.
        output: What it printed, both streams.
        duration_s: Seconds that it took.
        budget_s: Seconds that it was given.
        best: The settings file's content; None where none was written.
        files: Names of what is in its directory afterwards.
        left: Processes, temporary files and segments of shared memory that it left.
    """

    exit_code: int | None
    output: str
    duration_s: float
    budget_s: float
    best: dict[str, Any] | None = None
    files: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The settings that were written."""
        return dict(self.best["config"]) if self.best else {}

    @property
    def baseline(self) -> dict[str, Any]:
        """The settings that the script has."""
        return dict(self.best["baseline"]["config"]) if self.best else {}

    @property
    def gains(self) -> bool:
        """Whether it states a speed-up."""
        return bool(self.best and self.best["speedup"]["significant"])

    @property
    def speedup(self) -> tuple[float, float, float]:
        """The speed-up that it states, and its interval; 1 where it states none."""
        if not self.best or not self.gains:
            return 1.0, 1.0, 1.0
        stated = self.best["speedup"]
        return stated["ratio"], stated["low"], stated["high"]

    def stated_samples_per_update(self, which: str) -> float | None:
        """What follows from the figures of `baseline` or `expected`."""
        if not self.best:
            return None
        figures = self.best[which]
        return float(figures["samples_per_s"] * figures["seconds_per_optimizer_step"])


def missing(packages: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def tune(
    script: Path,
    command: Sequence[str],
    directory: Path,
    *,
    checkout: Path,
    budget_s: float,
    options: Sequence[str] = (),
) -> Tuning:
    """Run `autotune run` on a case in an empty directory.

    Args:
        script: The case.
        command: How it is started.
        directory: The directory; the settings file stays there.
        checkout: Where `autotune` is imported from.
        budget_s: Its budget.
        options: Further options of `autotune run`.
    """
    with tempfile.TemporaryDirectory(prefix="case-") as temporary:
        environment = case_environment(checkout, Path(temporary))
        shared = set(_shared_memory())
        begin_s = time.monotonic()
        tuner = [sys.executable, "-m", "autotune", "run", "--budget", f"{budget_s:.0f}s"]
        process = subprocess.Popen(
            [*tuner, *options, "--", *fill_in(command, script)],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        code: int | None
        try:
            output, _ = process.communicate(timeout=budget_s + _PATIENCE_S)
            code = process.returncode
        except subprocess.TimeoutExpired:
            end_marked(environment[MARK])
            output, _ = process.communicate()
            code = None
        duration_s = time.monotonic() - begin_s
        left = _left(environment[MARK], Path(temporary), shared)
        end_marked(environment[MARK])
    settings = directory / "best_config.yaml"
    return Tuning(
        exit_code=code,
        output=output,
        duration_s=duration_s,
        budget_s=budget_s,
        best=yaml.safe_load(settings.read_text()) if settings.exists() else None,
        files=tuple(sorted(path.name for path in directory.iterdir())),
        left=tuple(left),
    )


def _left(mark: str, temporary: Path, shared: set[str]) -> list[str]:
    """What is still there a moment after a run."""
    deadline_s = time.monotonic() + _GONE_S
    while True:
        processes = [f"process {_name(process)}" for process in marked_processes(mark)]
        files = [
            f"{path.name} in the temporary directory"
            for path in temporary.iterdir()
            if not path.name.startswith(_TORCH_CACHE)
        ]
        segments = sorted(_orphans(set(_shared_memory()) - shared))
        if segments:
            segments = [f"{len(segments)} in /dev/shm, such as {segments[0]}"]
        left = sorted([*processes, *files, *segments])
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(0.1)


def _shared_memory() -> Iterator[str]:
    return (path.name for path in _SHARED_MEMORY.iterdir()) if _SHARED_MEMORY.exists() else iter(())


def _orphans(names: set[str]) -> set[str]:
    """Segments that no live process has mapped: others may use the machine at the same time."""
    if not names:
        return names
    mapped = set()
    for process in psutil.pids():
        try:
            maps = Path(f"/proc/{process}/maps").read_text()
        except OSError:
            continue
        mapped |= {name for name in names if f"/{name}" in maps}
    return names - mapped


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(map(os.path.basename, process.cmdline()[:3]))
    except psutil.Error:
        return str(process.pid)
