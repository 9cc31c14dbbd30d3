"""The command line: `autotune run`, `fleet` and `doctor`; the others are beside it.

Exit codes: 0 done, also when nothing is gained; 1 the command failed, no configuration worked, or
the machine is too busy to measure on; 2 options, values, files or programs that cannot be used; 3
the settings that `check` was asked about do not hold; 130 interrupted, with what was measured kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from autotune.analysis.result import best_so_far
from autotune.best_config import write_best_config
from autotune.cli_definition import (
    define,
    defining_options,
    find_patch,
    open_runner_for,
    overrides,
    place_for_settings,
    quiet_libraries,
)
from autotune.cli_settings import apply, check, execute
from autotune.cli_studies import export, report, show
from autotune.errors import AutotuneError, BadInputError, CommandError, InterruptedRunError
from autotune.fleet.engines import EngineName
from autotune.fleet.fleet import Fleet, run_fleet
from autotune.report.console import (
    answer_as_dict,
    print_answer,
    print_written,
)
from autotune.report.findings import findings_as_dict, print_findings
from autotune.report.progress import ConsoleObserver, SilentObserver, say
from autotune.report.study_view import StudyView
from autotune.study.definition import (
    StudyDefinition,
)
from autotune.study.storage import (
    DEFAULT_STORAGE,
    failing_in_one_line,
    locked_storage,
    shown_url,
    storage_url,
)
from autotune.study.store import open_study
from autotune.system.interrupts import interruptible
from autotune.system.machine import this_machine
from autotune.trials.trial import TrialFailedError
from autotune.tuning.examination import examine
from autotune.tuning.tuner import Tuner

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command line; never ends in a traceback for an expected error."""
    with quiet_libraries(), interruptible():
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


# What follows the command's name belongs to the command, with `--` before it or without.
@cli.command(context_settings={"allow_interspersed_args": False})
@defining_options
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
    definition = define(study_file, command, overrides(options))
    program = definition.runnable_command
    # With --json, stdout is for programs, and people read stderr.
    console = Console(stderr=as_json, quiet=quiet and as_json, highlight=False)
    if not quiet:
        say(console, f"machine: {this_machine()}")
        say(console, f"command: {definition.command_line}")
    url = storage_url(storage or DEFAULT_STORAGE)
    out = place_for_settings(out, url)
    with locked_storage(url), failing_in_one_line(url):
        view = _run(console, definition, program, url=url, fresh=fresh, quiet=quiet)
    assert view.result is not None
    write_best_config(out, view.result.best)
    if as_json:
        click.echo(json.dumps(answer_as_dict(view), indent=2))
    print_answer(console, view)
    print_written(console, view.result, out)


@cli.command(context_settings={"allow_interspersed_args": False})
@defining_options
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
    definition = define(study_file, command, overrides(options))
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
@defining_options
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
    definition = define(study_file, command, overrides(options))
    program = definition.runnable_command
    console = Console(stderr=as_json, highlight=False)
    say(console, f"machine: {this_machine()}")
    say(console, f"command: {definition.command_line}")
    with open_runner_for(definition, program) as runner:
        find_patch(console, definition, runner)
        try:
            found = examine(definition, runner)
        except TrialFailedError as error:
            raise CommandError(error.explain("the command")) from error
    if as_json:
        click.echo(json.dumps(findings_as_dict(definition, found), indent=2))
    else:
        print_findings(console, definition, found)


for _command in (execute, apply, check, show, report, export):
    cli.add_command(_command)


def _run(
    console: Console,
    definition: StudyDefinition,
    program: tuple[str, ...],
    *,
    url: str,
    fresh: bool,
    quiet: bool,
) -> StudyView:
    store = open_study(url, definition.name, fresh=fresh)
    observer: ConsoleObserver | SilentObserver = SilentObserver()
    if not quiet:
        where = f"{store.name} in {shown_url(url)}"
        say(console, f"study: {where}, at most {definition.budget_s:.0f} s")
        observer = ConsoleObserver(console)
    try:
        with open_runner_for(definition, program) as runner, observer:
            find_patch(console, definition, runner)
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


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {message}" if code != EXIT_INTERRUPTED else message, err=True)
    return code
