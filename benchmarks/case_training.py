"""Plain training of a case: what it counts, and how fast it is, with a settings file or without.

The script is run as it is, only longer, with `case_observer` on its path.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

OBSERVER = Path(__file__).with_name("case_observer")
SHARED_MEMORY = Path("/dev/shm")
# A line of /proc/PID/maps: range, permissions, offset, device, inode, path.
_MAPPED = re.compile(r"^\S+ \S+ \S+ \S+ (\d+) +/dev/shm/", re.MULTILINE)
MARK = "AUTOTUNE_CASE"
# Far more than is trained: what ends a training is its time.
_LONG = {"EPOCHS": 400, "MAX_STEPS": 400_000}
_START_S, _POLL_S = 90.0, 0.05
# Looking takes CPU time from a training that uses all cores.
_LOOK_S = 0.5
# Loaders at whose passes about as many steps are taken feed one loop.
_SAME_LOOP = 0.8
_WARM_UP_S, _WARM_UP_SHARE, _LEAST_S = 1.0, 0.2, 0.3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a plain training did.

    Attributes:
        samples_per_s: In the steady part; None where that was too short.
        samples_per_epoch: Samples of a whole pass through the loader; None where there was none.
        samples_per_update: Samples per step of the optimizer that steps most often.
        epoch_s: Median seconds of a whole pass, the first ones left out.
        batch_size: The largest that the loader has; of several ranks, the sum.
        drop_last: Whether a last, partial batch is left out.
        error: The last line of what it wrote where it failed by itself.
    """

    samples_per_s: float | None = None
    samples_per_epoch: int | None = None
    samples_per_update: float | None = None
    epoch_s: float | None = None
    batch_size: int = 0
    drop_last: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoaderPass:
    """One pass through a loader: times and totals, from its begin on."""

    loader: int
    drop_last: bool
    batch_size: int
    times_s: tuple[float, ...]
    samples: tuple[int, ...]
    updates: int
    whole: bool

    @property
    def duration_s(self) -> float:
        """Seconds from its begin to what was last seen of it."""
        return self.times_s[-1] - self.times_s[0]


def train(
    script: Path,
    command: Sequence[str],
    *,
    checkout: Path,
    settings: Path | None,
    seconds: float,
    first_epochs: int = 0,
    size: str = "0",
) -> Training:
    """Train for some seconds, beginning with the first batch.

    Args:
        script: The case.
        command: How it is started; `{script}` stands for the script.
        checkout: Where `autotune` is imported from.
        settings: A `best_config.yaml`; None trains with the script's own settings.
        seconds: How long, from the first batch on.
        first_epochs: Epochs that are unlike those after them, and left out.
        size: How samples are counted (see `case_observer`).
    """
    with tempfile.TemporaryDirectory(prefix="case-") as name:
        directory = Path(name)
        for part in ("work", "log", "tmp"):
            (directory / part).mkdir()
        longer = lengthen(script, directory)
        if settings is not None:
            shutil.copy(settings, directory / "work" / "best_config.yaml")
        environment = case_environment(checkout, directory / "tmp", OBSERVER)
        environment |= {"CASES_LOG": str(directory / "log"), "CASES_SIZE": size}
        code = _run(
            fill_in(command, longer),
            directory,
            environment,
            seconds=seconds,
            first_epochs=first_epochs,
        )
        processes = [read_passes(path) for path in sorted((directory / "log").glob("*.jsonl"))]
        error = None
        if code:
            error = last_line((directory / "output").read_text(errors="replace"))
    return summarise(processes, first_epochs=first_epochs, error=error)


def case_environment(checkout: Path, temporary: Path, *paths: Path) -> dict[str, str]:
    """The environment of a case: a mark that its processes are found by, and paths of its own."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, checkout))),
        "TMPDIR": str(temporary),
        MARK: uuid.uuid4().hex,
    }


def fill_in(command: Sequence[str], script: Path) -> list[str]:
    """The command with the script's path in it."""
    return [part.format(script=script, stem=script.with_suffix("")) for part in command]


def lengthen(script: Path, directory: Path) -> Path:
    """A copy that trains for longer, with the shell script beside it if there is one."""

    def longer(found: re.Match[str]) -> str:
        return f"{found[1]} = {_LONG[found[1]]}"

    text = re.sub(r"^(EPOCHS|MAX_STEPS) = \d+$", longer, script.read_text(), flags=re.MULTILINE)
    copy = directory / script.name
    copy.write_text(text)
    if (shell := script.with_suffix(".sh")).exists():
        shutil.copy(shell, directory)
    return copy


def marked_processes(mark: str) -> list[psutil.Process]:
    """Live processes that inherited a mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(MARK) == mark
                and process.pid != os.getpid()
            ):
                found.append(process)
    return found


def end_marked(mark: str) -> None:
    """End all processes with a mark; those that they start meanwhile, too."""
    deadline_s = time.monotonic() + 10.0
    while (found := marked_processes(mark)) and time.monotonic() < deadline_s:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        time.sleep(_POLL_S)


def last_line(text: str) -> str:
    """The last line that is not empty, for messages."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _run(
    command: list[str],
    directory: Path,
    environment: dict[str, str],
    *,
    seconds: float,
    first_epochs: int,
) -> int | None:
    """Its exit status; None where it was ended because it had trained for long enough."""
    begin_s = time.monotonic()
    shared_before = shared_memory()
    with (directory / "output").open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=directory / "work",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(_LOOK_S)
                processes = [read_passes(path) for path in (directory / "log").iterdir()]
                trained_s = (trained_for(passes, first_epochs) for passes in processes)
                enough = max(trained_s, default=0.0) >= seconds
                if enough or time.monotonic() - begin_s > _START_S + 4 * seconds:
                    return None
            return process.returncode
        finally:
            end_marked(environment[MARK])
            process.wait()
            # What is killed unlinks nothing. Others may run beside it.
            for path in shared_memory() - shared_before:
                if not is_mapped(path):
                    path.unlink(missing_ok=True)


def shared_memory() -> set[Path]:
    """Named semaphores and segments of multiprocessing and torch that are there."""
    return {path for pattern in ("sem.mp-*", "torch_*") for path in SHARED_MEMORY.glob(pattern)}


def is_mapped(path: Path) -> bool:
    """Whether a live process has a file in `/dev/shm` mapped, under whatever name it was opened.

    Semaphores are mapped under a temporary name by who makes them: the inode tells.
    """
    try:
        inode = str(path.stat().st_ino)
    except OSError:
        return False
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if inode in _MAPPED.findall(maps.read_text(errors="replace")):
                return True
    return False


def trained_for(passes: Sequence[LoaderPass], first_epochs: int) -> float:
    """Seconds in a process's loop, after the first epochs, at least one epoch being whole.

    The start of the loader does not count: workers that are spawned take seconds.
    """
    mine = training_passes(passes)[first_epochs:]
    trained_s = sum(duration_s for duration_s, _ in _windows(mine))
    # An epoch that is longer than the time given is cut short in the end.
    return trained_s if any(p.whole for p in mine) else trained_s / 2


def read_passes(path: Path) -> list[LoaderPass]:
    """The passes that a process has recorded so far."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            # It was ended while it wrote.
            continue
        if event["event"] == "pass":
            found[event["number"]] = {**event, "times": [event["at_s"]], "samples": [0]}
            found[event["number"]] |= {"updates": 0, "whole": False}
            continue
        one = found[event["number"]]
        one["times"].append(event["at_s"])
        one["samples"].append(event["samples"])
        one["updates"] = event["updates"]
        one["whole"] = event["event"] == "end"
    return [
        LoaderPass(
            loader=one["loader"],
            drop_last=one["drop_last"],
            batch_size=one["batch_size"] or 0,
            times_s=tuple(one["times"]),
            samples=tuple(one["samples"]),
            updates=one["updates"],
            whole=one["whole"],
        )
        for one in found.values()
    ]


def training_passes(passes: Sequence[LoaderPass]) -> list[LoaderPass]:
    """Those of the loader in whose loop an optimizer steps most; of the first one otherwise.

    Where a loop takes from several, the steps are those of each, and the first one counts.
    """
    updates: collections.Counter[int] = collections.Counter()
    for one in passes:
        updates[one.loader] += one.updates
    if not updates:
        return []
    least = _SAME_LOOP * max(updates.values())
    chosen = min(loader for loader in updates if updates[loader] >= least)
    return [one for one in passes if one.loader == chosen]


def summarise(
    processes: Sequence[Sequence[LoaderPass]], *, first_epochs: int, error: str | None
) -> Training:
    """One training from what its processes (ranks) recorded."""
    mine = [passes for found in processes if (passes := training_passes(found))]
    # A process that was started to load data, and ran the script again, trains nothing.
    mine = [passes for passes in mine if passes[-1].samples[-1] or len(passes) > 1]
    if not mine:
        return Training(error=error or "no batch was delivered")
    rates = [rate for passes in mine if (rate := _steady_rate(passes[first_epochs:])) is not None]
    whole = [[p for p in passes if p.whole] for passes in mine]
    epochs = [passes[-1].samples[-1] for passes in whole if passes]
    later_s = [_later(passes, first_epochs) for passes in whole if passes]
    # Where an epoch is whole, its samples and updates belong together. Ranks step together.
    counted = whole if all(whole) else mine
    samples = sum(p.samples[-1] for passes in counted for p in passes)
    updates = sum(p.updates for p in counted[0])
    return Training(
        samples_per_s=sum(rates) if len(rates) == len(mine) else None,
        samples_per_epoch=sum(epochs) if len(epochs) == len(mine) else None,
        samples_per_update=samples / updates if updates else None,
        epoch_s=max(later_s) if len(later_s) == len(mine) else None,
        batch_size=sum(passes[-1].batch_size for passes in mine),
        drop_last=any(passes[-1].drop_last for passes in mine),
        error=error,
    )


def _later(passes: Sequence[LoaderPass], first_epochs: int) -> float:
    later = passes[max(1, first_epochs) :] or passes
    return statistics.median(p.duration_s for p in later)


def _steady_rate(passes: Sequence[LoaderPass]) -> float | None:
    """Samples per second of the loop, less its warm-up."""
    windows = list(_windows(passes))
    total_s = sum(duration_s for duration_s, _ in windows)
    skipped_s = min(_WARM_UP_S, _WARM_UP_SHARE * total_s)
    seen_s = steady_s = 0.0
    samples = 0
    for duration_s, num_samples in windows:
        seen_s += duration_s
        if seen_s > skipped_s:
            steady_s, samples = steady_s + duration_s, samples + num_samples
    return samples / steady_s if steady_s > _LEAST_S and samples else None


def _windows(passes: Sequence[LoaderPass]) -> Iterator[tuple[float, int]]:
    """Seconds and samples of each stretch, but for the first one of all: there a loader starts."""
    for number, one in enumerate(passes):
        times = range(len(one.times_s))[0 if number else 1 :]
        for before, after in itertools.pairwise(times):
            yield (
                one.times_s[after] - one.times_s[before],
                one.samples[after] - one.samples[before],
            )


def ratio(pairs: Sequence[tuple[Training, Training]]) -> tuple[float, float] | None:
    """How many times as fast the second of each pair is: geometric mean, and relative spread."""
    ratios = [
        after.samples_per_s / before.samples_per_s
        for before, after in pairs
        if before.samples_per_s and after.samples_per_s
    ]
    if not ratios:
        return None
    return statistics.geometric_mean(ratios), max(ratios) / min(ratios) - 1.0


def as_dict(training: Training | None) -> Mapping[str, object] | None:
    """Plain values, for JSON."""
    return None if training is None else dataclasses.asdict(training)
