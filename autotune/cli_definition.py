"""What defines a study on the command line, for the commands that start one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import optuna
from rich.console import Console
from threadpoolctl import threadpool_limits

from autotune.axes import AXES, AxisValue, Kind
from autotune.errors import BadInputError, CommandError
from autotune.files import check_writable, make_folder
from autotune.report.progress import say
from autotune.settings_files import file_of_kind
from autotune.study.definition import (
    AxisSet,
    SamplerName,
    StudyDefinition,
    default_study_file,
    define_for_command,
    parse_duration,
    read_definition,
)
from autotune.study.storage import is_on_server
from autotune.study.training_length import parse_training_length
from autotune.system.machine import this_machine
from autotune.trials.runner import Runner, open_runner
from autotune.trials.trial import TrialFailedError


def _axis(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> dict[str, list[AxisValue]]:
    axes: dict[str, list[AxisValue]] = {}
    for text in values:
        name, separator, numbers = text.partition("=")
        name = name.strip().replace("-", "_")
        if name in axes:
            raise click.BadParameter(f"{name} is given twice: put all its values into one")
        try:
            axes[name] = [_axis_value(name, part.strip()) for part in numbers.split(",")]
        except ValueError:
            separator = ""
        if not separator:
            raise click.BadParameter(
                f"must look like batch_size=2,4,8, pin_memory=true,false or gc=default,frozen, "
                f"not {text!r}"
            )
    return axes


def _axis_value(name: str, text: str) -> AxisValue:
    if name in AXES and AXES[name].kind is Kind.WORD:
        return text
    return {"true": True, "false": False}[text] if text in ("true", "false") else int(text)


# What defines a study, in the order in which help shows it.
_DEFINING_OPTIONS = (
    click.option(
        "--study", "study_file", type=click.Path(path_type=Path), help="Study file (YAML)."
    ),
    click.option("--budget", help="Time for everything, such as 90s, 3m, 1h.  [default: 1h]"),
    click.option(
        "--training",
        metavar="LENGTH",
        help="Length of the whole training, such as 20epochs or 5000steps (optimizer steps).",
    ),
    click.option("--max-trials", type=click.IntRange(min=1), help="Most trials of the search."),
    click.option("--sampler", type=click.Choice([name.value for name in SamplerName])),
    click.option("--start-mode", type=click.Choice(["auto", "fork", "fresh"])),
    click.option(
        "--axis",
        "axes",
        multiple=True,
        callback=_axis,
        metavar="NAME=VALUES",
        help="Values of one axis: --axis batch_size=2,4,8. Repeatable.",
    ),
    click.option(
        "--axes",
        "axis_set",
        type=click.Choice([name.value for name in AxisSet]),
        help="extended: search settings as well that help some loops only.",
    ),
    click.option(
        "--patch",
        is_flag=True,
        default=None,
        help="Tune a script that does not call autotune, as it is.",
    ),
    click.option(
        "--patch-batch-size",
        is_flag=True,
        default=None,
        help="The same, and its batch size, too: this changes what is learned.",
    ),
    click.option(
        "--gpu-headroom",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="SHARE",
        help="Share of a GPU's memory that the settings must leave free.  [default: 0.1]",
    ),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of the sampler."),
    click.option(
        "--allow-busy",
        is_flag=True,
        default=None,
        help="Measure although other processes use the cores.",
    ),
)


def defining_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that define a study."""
    return functools.reduce(lambda made, option: option(made), reversed(_DEFINING_OPTIONS), command)


def define(
    study_file: Path | None, command: tuple[str, ...], given: dict[str, Any]
) -> StudyDefinition:
    """The definition by a study file, a command, or the file that the project names.

    Raises:
        BadInputError: There is none of these, or it breaks a rule.
    """
    if command and study_file is None:
        return define_for_command(command, given)
    study_file = study_file or default_study_file(Path.cwd())
    if study_file is None:
        raise BadInputError(
            "nothing to tune: give a command (`autotune run -- python train.py`), a --study file, "
            "or name one in pyproject.toml under [tool.autotune] study"
        )
    if command:
        given["command"] = list(command)
    return read_definition(study_file, given)


def overrides(options: dict[str, Any]) -> dict[str, Any]:
    """What the command line says, in the definition's own names; what it leaves out is absent."""
    given = {name: value for name, value in options.items() if value not in (None, {})}
    if "budget" in given:
        given["budget_s"] = parse_duration(given.pop("budget"), source="--budget")
    if "training" in given:
        length = parse_training_length(given["training"], source="--training")
        given["training"] = dataclasses.asdict(length)
    if given.get("patch_batch_size"):
        given["patch"] = True
    if options.get("start_mode") == "auto":
        given["start_mode"] = None
    return given


def find_patch(console: Console, definition: StudyDefinition, runner: Runner) -> None:
    """Find what feeds the training of a script that is tuned as it is."""
    if not definition.patch:
        return
    try:
        target = runner.patch(with_batch_size=definition.patch_batch_size)
    except TrialFailedError as error:
        raise CommandError(error.explain("the command")) from error
    say(console, f"patched: {target}")


def open_runner_for(
    definition: StudyDefinition, program: tuple[str, ...]
) -> contextlib.AbstractContextManager[Runner]:
    """What starts the processes of a study; all of them end with it."""
    return open_runner(
        program, start_mode=definition.start_mode, start_deadline_s=definition.start_deadline_s
    )


def place_for_settings(out: Path, url: str) -> Path:
    """Where the settings of this machine are written: `out`, or its kind's file beside it.

    Machines of other kinds may use the same server, and the same folder. Where there is such a
    file, training takes it before the one that was named.

    Raises:
        BadInputError: Nothing can be written there.
    """
    of_kind = file_of_kind(out, this_machine().kind)
    if is_on_server(url) or of_kind.is_file():
        out = of_kind
        make_folder(out.parent)
    check_writable(out)
    return out


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Libraries print nothing of their own, and compute with one thread.

    The matrices of the model are small: more threads would be slower, and spin beside the trials.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # An interrupt in the middle of a query has SQLAlchemy print where; the run ends in order.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL + 1)
    with threadpool_limits(limits=1):
        yield
