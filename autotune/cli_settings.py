"""The commands about settings that were found: `autotune exec`, `apply` and `check`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import Any

import click
import pydantic
from rich.console import Console

from autotune.analysis.alternatives import Explored
from autotune.best_config import BestConfig, read_settings, write_best_config
from autotune.cli_definition import (
    define,
    find_patch,
    open_runner_for,
    overrides,
    place_for_settings,
)
from autotune.errors import AutotuneError, BadInputError, InterruptedRunError
from autotune.patch.environment import training_environment
from autotune.report.progress import ConsoleObserver, SilentObserver, say
from autotune.report.study_view import StudyView, open_view
from autotune.report.text import cautions
from autotune.requirements import Objective, Requirements
from autotune.settings_files import settings_exist
from autotune.study.definition import (
    StudyDefinition,
    default_study_file,
    define_for_command,
    runnable,
)
from autotune.study.storage import (
    DEFAULT_STORAGE,
    failing_in_one_line,
    locked_storage,
    shown_url,
    storage_url,
)
from autotune.study.store import find_study, open_study
from autotune.system.machine import this_machine
from autotune.torchrun import with_ranks_per_node
from autotune.tuning.applying import Applied, apply_requirements
from autotune.tuning.checking import check_settings
from autotune.tuning.executor import Executor

EXIT_STALE = 3
# Two rounds of so many seconds tell a loss that matters, in about half a minute.
_CHECK_ROUNDS, _CHECK_S = 2, 1.5


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("best_config.yaml"),
    show_default=True,
    help="The settings.",
)
@click.option("--print", "as_lines", is_flag=True, help="Print the environment as shell lines.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def execute(*, config: Path, as_lines: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND, a training, with the settings that `autotune run` found.

    It gets the environment that they need before it starts. A script that was tuned with --patch
    gets all of them in this way, and is not changed.
    """
    _, best = _settings(config)
    variables = training_environment(best, config, os.environ)
    if as_lines:
        for name, value in variables.items():
            click.echo(f"export {name}={shlex.quote(value)}")
        return
    if not command:
        raise BadInputError("nothing to run: give a command (`autotune exec -- python train.py`)")
    if best.config.ranks_per_node != best.baseline.config.ranks_per_node:
        command = with_ranks_per_node(command, best.config.ranks_per_node)
    program = runnable(command)
    try:
        os.execve(program[0], program, {**os.environ, **variables})
    except OSError as error:
        raise BadInputError(f"command: {command[0]} cannot be started: {error.strerror}") from error


def _settings(file: Path) -> tuple[Path, BestConfig]:
    """The settings for this machine, and where they lie."""
    if not settings_exist(file):
        raise BadInputError(f"{file}: no such file: `autotune run` writes it; or name another one")
    return read_settings(file, this_machine())


def _bytes(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        found = int(pydantic.TypeAdapter(pydantic.ByteSize).validate_python(text))
    except pydantic.ValidationError:
        found = 0
    if found <= 0:
        raise click.BadParameter(f"must look like 8GiB, 500MB or 2000000000, not {text!r}")
    return found


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--batch-size", type=click.IntRange(min=1), help="Settings with this batch size.")
@click.option("--max-workers", type=click.IntRange(min=0), help="With so many workers at most.")
@click.option(
    "--max-memory",
    metavar="SIZE",
    callback=_bytes,
    help="With so much memory at most, of all processes, such as 8GiB.",
)
@click.option(
    "--objective",
    type=click.Choice([objective.value for objective in Objective]),
    default=Objective.THROUGHPUT.value,
    show_default=True,
    help="What is best: the most samples per second, or the least CPU time or energy for each.",
)
@click.option("--study", "study_file", type=click.Path(path_type=Path), help="Study file (YAML).")
@click.option("--budget", help="Time for everything, such as 90s, 3m.  [default: 1h]")
@click.option("--patch", is_flag=True, default=None, help="As for `autotune run`.")
@click.option("--patch-batch-size", is_flag=True, default=None, help="As for `autotune run`.")
@click.option(
    "--allow-busy",
    is_flag=True,
    default=None,
    help="Measure although other processes use the cores.",
)
@click.option("--storage", help="SQLite file or database URL.  [default: studies/autotune.db]")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("best_config.yaml"),
    show_default=True,
    help="Where the settings are written.",
)
@click.option("--quiet", is_flag=True, help="Show the result only.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def apply(
    *,
    batch_size: int | None,
    max_workers: int | None,
    max_memory: int | None,
    objective: str,
    study_file: Path | None,
    storage: str | None,
    out: Path,
    quiet: bool,
    command: tuple[str, ...],
    **options: Any,  # noqa: ANN401
) -> None:
    """Write the best settings that keep to some limits, from what `autotune run` has measured.

    They are run beside the script's own in fresh processes; nothing is searched again. COMMAND is
    what was tuned; without it, the study that pyproject.toml names is meant, or else the last one.
    """
    requirements = Requirements(
        batch_size=batch_size,
        max_workers=max_workers,
        max_memory_bytes=max_memory,
        objective=Objective(objective),
    )
    if requirements == Requirements():
        raise BadInputError(
            "nothing is asked for: give --batch-size, --max-workers, --max-memory or --objective; "
            "the fastest settings of all are those that `autotune run` writes"
        )
    url = storage_url(storage or DEFAULT_STORAGE)
    with failing_in_one_line(url):
        definition = _tuned(url, study_file, command, overrides(options))
    program = definition.runnable_command
    out = place_for_settings(out, url)
    console = Console(highlight=False)
    with locked_storage(url), failing_in_one_line(url):
        done = _apply(console, definition, program, requirements, url=url, quiet=quiet)
    write_best_config(out, done.best)
    for line in (*done.sentences, *cautions(done.best)):
        say(console, line)
    say(console, f"written to {out}")


def _tuned(
    url: str, study_file: Path | None, command: tuple[str, ...], given: dict[str, Any]
) -> StudyDefinition:
    """What was tuned: as it is named, or else as the last study of the storage was defined."""
    if command or study_file is not None or default_study_file(Path.cwd()) is not None:
        definition = define(study_file, command, given)
        headroom = find_study(url, definition.name).user_attrs.get("gpu_headroom")
        if isinstance(headroom, float):
            definition = dataclasses.replace(definition, gpu_headroom=headroom)
        return definition
    study = find_study(url, None)
    facts = study.user_attrs
    command = tuple(map(str, facts.get("command") or ()))
    if isinstance(facts.get("gpu_headroom"), float):
        given = {"gpu_headroom": facts["gpu_headroom"], **given}
    if isinstance(target := facts.get("patch"), dict):
        given = {"patch": True, "patch_batch_size": bool(target.get("tunes_batch_size")), **given}
    if command:
        definition = define_for_command(command, given)
        if study.study_name.partition("@")[0].startswith(definition.name):
            return definition
    raise BadInputError(
        f"study {study.study_name}, the last of {shown_url(url)}, was defined elsewhere: name the "
        "command that was tuned, or its --study file"
    )


def _apply(
    console: Console,
    definition: StudyDefinition,
    program: tuple[str, ...],
    requirements: Requirements,
    *,
    url: str,
    quiet: bool,
) -> Applied:
    store = open_study(url, definition.name, fresh=False)
    observer = SilentObserver() if quiet else ConsoleObserver(console)
    try:
        view = StudyView.of(
            store.name, shown_url(url), store.facts, store.records(), store.earlier_records()
        )
        explored = view.explored
        if explored is None:
            raise BadInputError(f"study {store.name}: nothing is measured yet: run `autotune run`")
        if view.machine is not None and view.machine.fingerprint != this_machine().fingerprint:
            raise BadInputError(
                f"study {store.name}: was measured on another machine, {view.machine}: run "
                "`autotune run` here"
            )
        with open_runner_for(definition, program) as runner, observer:
            find_patch(console, definition, runner)
            executor = Executor(definition, store=store, runner=runner, observer=observer)
            return apply_requirements(executor, explored, requirements, storage=shown_url(url))
    except KeyboardInterrupt:
        store.repair(own=True)
        raise InterruptedRunError("interrupted. Everything measured is kept") from None
    finally:
        store.close()


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--budget", default="60s", show_default=True, help="Time for everything.")
@click.option("--storage", help="Where its study is.  [default: where the file says]")
@click.option(
    "--allow-busy",
    is_flag=True,
    default=None,
    help="Measure although other processes use the cores.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Show the verdict only.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def check(
    *,
    file: Path,
    storage: str | None,
    as_json: bool,
    quiet: bool,
    command: tuple[str, ...],
    **options: Any,  # noqa: ANN401
) -> int:
    """Tell whether the settings in FILE still hold on this machine: exit code 0, or 3 if not.

    They are run beside the script's own, and what their study thinks best now, in fresh processes.
    COMMAND is the training; without it, that of the file.
    """
    file, best = _settings(file)
    console = Console(stderr=as_json, highlight=False)
    observer = SilentObserver() if quiet else ConsoleObserver(console)
    given = overrides(options)
    if best.patch is not None:
        given |= {"patch": True, "patch_batch_size": best.patch.tunes_batch_size}
    given |= {"confirm_rounds": _CHECK_ROUNDS, "confirm_s": _CHECK_S}
    explored, headroom = _study_of(best, storage, observer)
    if headroom is not None:
        given.setdefault("gpu_headroom", headroom)
    definition = define_for_command(command or _command_of(file, best), given)
    program = definition.runnable_command
    # Nothing of this is kept: it is of other conditions than the study, perhaps.
    with (
        contextlib.closing(open_study("sqlite://", definition.name, fresh=False)) as store,
        open_runner_for(definition, program) as runner,
        observer,
    ):
        find_patch(console, definition, runner)
        executor = Executor(definition, store=store, runner=runner, observer=observer)
        checked = check_settings(executor, best, explored)
    line = f"{file} {checked.sentence}"
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(checked), "sentence": line}, indent=2))
    else:
        say(console, line)
    return 0 if checked.holds else EXIT_STALE


def _study_of(
    best: BestConfig, storage: str | None, observer: ConsoleObserver | SilentObserver
) -> tuple[Explored | None, float | None]:
    """What the study of a settings file tells, and the headroom of a GPU that it kept.

    None where it cannot be read, which is said.
    """
    where = storage or best.study.storage
    try:
        with failing_in_one_line(storage_url(where)):
            view = open_view(where, best.study.name)
            return view.explored, view.facts.gpu_headroom
    except AutotuneError as error:
        observer.note(
            f"its study cannot be read ({error}): what else may be faster is not known. --storage "
            "says where it is"
        )
    return None, None


def _command_of(file: Path, best: BestConfig) -> tuple[str, ...]:
    try:
        found = tuple(shlex.split(best.study.command))
    except ValueError as error:
        raise BadInputError(f"{file}: study.command: {error}") from error
    if not found:
        raise BadInputError(f"{file}: study.command: names no program: give the command")
    return found
