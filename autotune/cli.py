"""The command line: `autotune run`, `doctor`, `exec`, `show`, `report` and `export`.

Exit codes: 0 done, also when nothing is gained; 1 the command failed, no configuration worked, or
the machine is too busy to measure on;
2 options, values, files or programs that cannot be used; 130 interrupted, with what was measured
kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import optuna
from rich.console import Console
from threadpoolctl import threadpool_limits

from autotune.analysis.result import best_so_far
from autotune.axes import AXES, AxisValue, Kind
from autotune.best_config import read_settings, write_best_config
from autotune.cli_studies import export, report, show
from autotune.errors import AutotuneError, BadInputError, CommandError, InterruptedRunError
from autotune.files import check_writable, make_folder
from autotune.fleet.engines import EngineName
from autotune.fleet.fleet import Fleet, run_fleet
from autotune.patch.environment import training_environment
from autotune.report.console import (
    answer_as_dict,
    print_answer,
    print_written,
)
from autotune.report.findings import findings_as_dict, print_findings
from autotune.report.progress import ConsoleObserver, SilentObserver, say
from autotune.report.study_view import StudyView
from autotune.settings_files import file_of_kind, settings_exist
from autotune.study.definition import (
    SamplerName,
    StudyDefinition,
    default_study_file,
    define_for_command,
    parse_duration,
    read_definition,
    runnable,
)
from autotune.study.storage import (
    DEFAULT_STORAGE,
    failing_in_one_line,
    is_on_server,
    locked_storage,
    shown_url,
    storage_url,
)
from autotune.study.store import open_study
from autotune.study.training_length import parse_training_length
from autotune.system.interrupts import interruptible
from autotune.system.machine import this_machine
from autotune.torchrun import with_ranks_per_node
from autotune.trials.runner import Runner, open_runner
from autotune.trials.trial import TrialFailedError
from autotune.tuning.examination import examine
from autotune.tuning.tuner import Tuner

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command line; never ends in a traceback for an expected error."""
    with interruptible():
        try:
            code = cli(standalone_mode=False)
        except (click.exceptions.Abort, KeyboardInterrupt):
            code = _fail("interrupted", EXIT_INTERRUPTED)
        except InterruptedRunError as error:
            code = _fail(str(error), EXIT_INTERRUPTED)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except BadInputError as error:
            code = _fail(str(error), EXIT_BAD_INPUT)
        except AutotuneError as error:
            code = _fail(str(error), EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="autotune")
def cli() -> None:
    """Find the settings with which a PyTorch training loop runs fastest on this machine."""


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


def _defining_options(command: Callable[..., None]) -> Callable[..., None]:
    return functools.reduce(lambda made, option: option(made), reversed(_DEFINING_OPTIONS), command)


# What follows the command's name belongs to the command, with `--` before it or without.
@cli.command(context_settings={"allow_interspersed_args": False})
@_defining_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("best_config.yaml"),
    show_default=True,
    help="Where the settings are written.",
)
@click.option("--storage", help="SQLite file or database URL.  [default: studies/autotune.db]")
@click.option("--fresh", is_flag=True, help="Start a new study instead of going on with the last.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Show the result only.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    *,
    study_file: Path | None,
    out: Path,
    storage: str | None,
    fresh: bool,
    as_json: bool,
    quiet: bool,
    command: tuple[str, ...],
    **options: Any,  # noqa: ANN401
) -> None:
    """Tune COMMAND, a training loop that calls autotune.load_config and autotune.steps.

    With --patch the loop need not call anything; `autotune exec` then trains with the settings.
    Without COMMAND, the study that pyproject.toml names in [tool.autotune] is run. A study goes on
    where it was stopped.
    """
    definition = _define(study_file, command, _overrides(options))
    program = definition.runnable_command
    # With --json, stdout is for programs, and people read stderr.
    console = Console(stderr=as_json, quiet=quiet and as_json, highlight=False)
    if not quiet:
        say(console, f"machine: {this_machine()}")
        say(console, f"command: {definition.command_line}")
    url = storage_url(storage or DEFAULT_STORAGE)
    of_kind = file_of_kind(out, this_machine().kind)
    if is_on_server(url) or of_kind.is_file():
        # Machines of other kinds may use the same server, and the same folder. Where there is such
        # a file, training takes it before the one that was named.
        out = of_kind
        make_folder(out.parent)
    check_writable(out)
    with locked_storage(url), failing_in_one_line(url):
        view = _run(console, definition, program, url=url, fresh=fresh, quiet=quiet)
    assert view.result is not None
    write_best_config(out, view.result.best)
    if as_json:
        click.echo(json.dumps(answer_as_dict(view), indent=2))
    print_answer(console, view)
    print_written(console, view.result, out)


@cli.command(context_settings={"allow_interspersed_args": False})
@_defining_options
@click.option(
    "--engine",
    type=click.Choice([name.value for name in EngineName]),
    required=True,
    help="What starts the runs.",
)
@click.option(
    "--machines",
    type=click.IntRange(min=1),
    help="On how many.  [default: all of a Ray cluster, 1 elsewhere]",
)
@click.option("--storage", required=True, help="URL of the database that the machines share.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("best_config.yaml"),
    show_default=True,
    help="Each kind of machine gets its settings in the folder beside this file.",
)
@click.option(
    "--option",
    "scheduler_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="One of the scheduler's own: --option partition=gpu. Repeatable.",
)
@click.option(
    "--logs",
    type=click.Path(path_type=Path),
    default=Path("studies/fleet"),
    show_default=True,
    help="Where the scheduler keeps what the runs print.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def fleet(
    context: click.Context,
    /,
    *,
    engine: str,
    machines: int | None,
    storage: str,
    out: Path,
    scheduler_options: tuple[str, ...],
    logs: Path,
    study_file: Path | None,
    command: tuple[str, ...],
    **options: Any,  # noqa: ANN401
) -> None:
    """Run `autotune run` with COMMAND on each of many machines, by Slurm, Ray or as a process here.

    Machines of one kind search together; each kind gets settings of its own in best_config.d.
    """
    definition = _define(study_file, command, _overrides(options))
    run_fleet(
        Console(highlight=False),
        Fleet(
            engine=EngineName(engine),
            num_machines=machines,
            storage=storage,
            out=out,
            options=_scheduler_options(scheduler_options),
            folder=logs,
        ),
        definition,
        [*_as_arguments(context), "--", *command],
    )


def _scheduler_options(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise BadInputError(f"--option {text}: must look like NAME=VALUE")
        found[name] = value
    return found


def _as_arguments(context: click.Context) -> list[str]:
    """What defines the study, as it was given to this command, for another one."""
    arguments = []
    given = {option.name: option for option in context.command.params}
    for name in (parameter.name for parameter in run.params if isinstance(parameter, click.Option)):
        option, value = given.get(name), context.params.get(name or "")
        if (
            option is None
            or name in ("storage", "out")
            or value is None
            or value is False
            or value == {}
        ):
            continue
        [flag, *_] = option.opts
        if name == "axes":
            for axis, values in value.items():
                texts = (json.dumps(v) if isinstance(v, bool) else str(v) for v in values)
                arguments += [flag, f"{axis}={','.join(texts)}"]
        else:
            arguments += [flag] if value is True else [flag, str(value)]
    return arguments


@cli.command(context_settings={"allow_interspersed_args": False})
@_defining_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON on stdout.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def doctor(
    *,
    study_file: Path | None,
    as_json: bool,
    command: tuple[str, ...],
    **options: Any,  # noqa: ANN401
) -> None:
    """Tell what `autotune run` would do with COMMAND, without searching anything.

    What would be tuned, what not and why, whether trials can be forked, and how long a run takes.
    The command is started twice and trains for a few steps.
    """
    definition = _define(study_file, command, _overrides(options))
    program = definition.runnable_command
    console = Console(stderr=as_json, highlight=False)
    say(console, f"machine: {this_machine()}")
    say(console, f"command: {definition.command_line}")
    with _runner(definition, program) as runner:
        _patch(console, definition, runner)
        try:
            found = examine(definition, runner)
        except TrialFailedError as error:
            raise CommandError(error.explain("the command")) from error
    if as_json:
        click.echo(json.dumps(findings_as_dict(definition, found), indent=2))
    else:
        print_findings(console, definition, found)


@cli.command("exec", context_settings={"allow_interspersed_args": False})
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
    if not settings_exist(config):
        raise BadInputError(
            f"{config}: no such file: `autotune run` writes it, or name another with --config"
        )
    _, best = read_settings(config, this_machine())
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


for _command in (show, report, export):
    cli.add_command(_command)


def _define(
    study_file: Path | None, command: tuple[str, ...], overrides: dict[str, Any]
) -> StudyDefinition:
    if command and study_file is None:
        return define_for_command(command, overrides)
    study_file = study_file or default_study_file(Path.cwd())
    if study_file is None:
        raise BadInputError(
            "nothing to tune: give a command (`autotune run -- python train.py`), a --study file, "
            "or name one in pyproject.toml under [tool.autotune] study"
        )
    if command:
        overrides["command"] = list(command)
    return read_definition(study_file, overrides)


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """What the command line says, in the definition's own names; what it leaves out is absent."""
    given = {name: value for name, value in options.items() if value not in (None, {})}
    if "budget" in given:
        given["budget_s"] = parse_duration(given.pop("budget"), source="--budget")
    if "training" in given:
        length = parse_training_length(given["training"], source="--training")
        given["training"] = dataclasses.asdict(length)
    if given.get("patch_batch_size"):
        given["patch"] = True
    if options["start_mode"] == "auto":
        given["start_mode"] = None
    return given


def _run(
    console: Console,
    definition: StudyDefinition,
    program: tuple[str, ...],
    *,
    url: str,
    fresh: bool,
    quiet: bool,
) -> StudyView:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # An interrupt in the middle of a query has SQLAlchemy print where; the run ends in order.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL + 1)
    store = open_study(url, definition.name, fresh=fresh)
    observer: ConsoleObserver | SilentObserver = SilentObserver()
    if not quiet:
        where = f"{store.name} in {shown_url(url)}"
        say(console, f"study: {where}, at most {definition.budget_s:.0f} s")
        observer = ConsoleObserver(console)
    # The matrices of the model are small: more threads would be slower, and spin beside the trials.
    limits = threadpool_limits(limits=1)
    try:
        with limits, _runner(definition, program) as runner, observer:
            _patch(console, definition, runner)
            tuner = Tuner(
                definition,
                storage=shown_url(url),
                store=store,
                runner=runner,
                observer=observer,
            )
            tuner.run()
        return StudyView.of(
            store.name, shown_url(url), store.facts, store.records(), store.earlier_records()
        )
    except KeyboardInterrupt:
        store.repair(own=True)
        best = best_so_far(store.trusted_records())
        kept = f"; best so far: {best}" if best else ""
        raise InterruptedRunError(
            f"interrupted{kept}. Everything measured is kept: the same command goes on"
        ) from None
    finally:
        store.close()


def _patch(console: Console, definition: StudyDefinition, runner: Runner) -> None:
    """Find what feeds the training of a script that is tuned as it is."""
    if not definition.patch:
        return
    try:
        target = runner.patch(with_batch_size=definition.patch_batch_size)
    except TrialFailedError as error:
        raise CommandError(error.explain("the command")) from error
    say(console, f"patched: {target}")


def _runner(
    definition: StudyDefinition, program: tuple[str, ...]
) -> contextlib.AbstractContextManager[Runner]:
    return open_runner(
        program, start_mode=definition.start_mode, start_deadline_s=definition.start_deadline_s
    )


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {message}" if code != EXIT_INTERRUPTED else message, err=True)
    return code
