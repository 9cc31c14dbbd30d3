"""`autotune fleet`: one run on each of many machines."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from autotune.best_config import write_best_config
from autotune.errors import BadInputError, CommandError
from autotune.files import make_folder
from autotune.fleet.engines import EngineName, Job, State, submit
from autotune.fleet.live import watch
from autotune.report.console import print_table
from autotune.report.machines import KindView, read_kinds, table_of
from autotune.report.progress import say
from autotune.report.study_view import open_view
from autotune.settings_files import file_of_kind
from autotune.study.definition import StudyDefinition
from autotune.study.storage import failing_in_one_line, is_on_server, storage_url


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is asked for.

    Attributes:
        engine: What starts the runs.
        num_machines: How many; None for all of a Ray cluster, and one elsewhere.
        storage: The database that they share.
        out: The settings file; each kind of machine gets its own in the folder beside it.
        options: The scheduler's own, by name.
        folder: Where the scheduler keeps what the runs print.
    """

    engine: EngineName
    num_machines: int | None
    storage: str
    out: Path
    options: Mapping[str, str]
    folder: Path


def run_fleet(
    console: Console, fleet: Fleet, definition: StudyDefinition, arguments: Sequence[str]
) -> None:
    """Start a run on each machine, show them, and write the answer of each kind of machine.

    Args:
        console: Where they are shown.
        fleet: The machines.
        definition: What is tuned; a mistake in it is told before anything is started.
        arguments: What says so to `autotune run`: its options, `--` and the command.

    Raises:
        BadInputError: The storage is a file, which several machines cannot share.
        CommandError: No run came to an answer.
    """
    url = storage_url(fleet.storage)
    if not is_on_server(url):
        raise BadInputError(
            f"--storage {fleet.storage}: several machines need a database server: "
            "postgresql://USER@HOST/DATABASE"
        )
    make_folder(fleet.out.parent)

    def read() -> tuple[KindView, ...]:
        with failing_in_one_line(url):
            return tuple(kind for kind in read_kinds(url) if _is_of(kind, definition))

    with submit(
        fleet.engine,
        ["--quiet", "--storage", fleet.storage, "--out", str(fleet.out), *arguments],
        num_machines=fleet.num_machines,
        budget_s=definition.budget_s,
        options=fleet.options,
        folder=fleet.folder,
    ) as jobs:
        say(console, f"{len(jobs)} run{'s' if len(jobs) != 1 else ''} started by {fleet.engine}")
        try:
            states = watch(console, jobs, read)
        except BaseException:
            _cancel(jobs)
            raise
    if State.DONE not in states.values():
        raise CommandError("no run came to an answer: see above, and `autotune show --all`")
    kinds = read()
    print_table(console, table_of(kinds))
    for path in _write_answers(kinds, url, fleet.out):
        say(console, f"written to {path}")


def _cancel(jobs: Iterable[Job]) -> None:
    for job in jobs:
        # One that cannot be cancelled, since it has just ended, is no reason to leave the others.
        with contextlib.suppress(Exception):
            job.cancel()


def _is_of(kind: KindView, definition: StudyDefinition) -> bool:
    """Whether a study is one of the definition's, of whatever kind of machine."""
    name = kind.study.partition("@")[0]
    return name == definition.name and kind.command == " ".join(definition.command)


def _write_answers(kinds: Sequence[KindView], url: str, out: Path) -> list[Path]:
    """The settings file of each kind, for machines that do not see the folders of the others."""
    latest = {kind.machine.kind: kind for kind in kinds if kind.machine is not None}
    written = []
    for kind in latest.values():
        result = open_view(url, kind.study).result
        if result is None or kind.machine is None:
            continue
        path = file_of_kind(out, kind.machine.kind)
        make_folder(path.parent)
        write_best_config(path, result.best)
        written.append(path)
    return written
