"""The commands that look at stored studies: `autotune show`, `report` and `export`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from autotune.errors import BadInputError
from autotune.files import check_writable, write_atomically
from autotune.report.console import print_answer, print_study, print_table
from autotune.report.machines import as_dicts, read_kinds, table_of
from autotune.report.progress import say
from autotune.report.study_view import open_view
from autotune.study.storage import DEFAULT_STORAGE, failing_in_one_line, storage_url


@click.command()
@click.argument("study", required=False)
@click.option("--storage", default=str(DEFAULT_STORAGE), show_default=True)
@click.option("--csv", "form", flag_value="csv", help="Print comma-separated values.")
@click.option("--json", "form", flag_value="json", help="Print a JSON list of trials.")
@click.option(
    "--all", "every", is_flag=True, help="Compare all studies of the storage, machine by machine."
)
def show(study: str | None, storage: str, form: str | None, *, every: bool) -> None:
    """Print a study: its trials, and its answer.

    STUDY is its name, or the file or URL of a storage whose latest study is meant.
    """
    from autotune.report.dataframe import load_study
    from autotune.report.export import to_csv, to_json

    storage, study = _find(study, storage)
    if every:
        _show_all(study, storage, form)
        return
    with failing_in_one_line(storage_url(storage)):
        frame, view = load_study(storage, study), open_view(storage, study)
    if form == "csv":
        click.echo(to_csv(frame), nl=False)
    elif form == "json":
        click.echo(to_json(frame))
    else:
        console = Console(highlight=False)
        print_study(console, frame)
        print_answer(console, view)


def _show_all(study: str | None, storage: str, form: str | None) -> None:
    if study is not None or form == "csv":
        raise BadInputError("--all: is about all studies, as a table or with --json")
    url = storage_url(storage)
    with failing_in_one_line(url):
        kinds = read_kinds(url)
    if form == "json":
        click.echo(json.dumps(as_dicts(kinds), indent=2))
    else:
        print_table(Console(highlight=False), table_of(kinds))


@click.command()
@click.argument("study", required=False)
@click.option("--storage", default=str(DEFAULT_STORAGE), show_default=True)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Where the page is written.",
)
def report(study: str | None, storage: str, out: Path) -> None:
    """Write a page about a study that any browser opens offline.

    STUDY is its name, or the file or URL of a storage whose latest study is meant.
    """
    from autotune.report.dataframe import load_study
    from autotune.report.html import make_page

    storage, study = _find(study, storage)
    check_writable(out)
    with failing_in_one_line(storage_url(storage)):
        page = make_page(open_view(storage, study), load_study(storage, study))
    write_atomically(out, page)
    say(Console(highlight=False), f"written to {out}")


@click.command()
@click.argument("study", required=False)
@click.option("--storage", default=str(DEFAULT_STORAGE), show_default=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="A file: .csv, .json or .parquet."
)
@click.option("--mlflow", metavar="URI", help="An MLflow tracking URI; a run for each trial.")
@click.option("--tensorboard", type=click.Path(path_type=Path), help="A directory of runs.")
def export(
    study: str | None,
    storage: str,
    out: Path | None,
    mlflow: str | None,
    tensorboard: Path | None,
) -> None:
    """Hand the trials of a study to other tools.

    STUDY is its name, or the file or URL of a storage whose latest study is meant.
    """
    from autotune.report.dataframe import load_study
    from autotune.report.export import log_to_mlflow, log_to_tensorboard, write_table

    storage, study = _find(study, storage)
    if out is None and mlflow is None and tensorboard is None:
        raise BadInputError("nothing to do: give a file with -o, or --mlflow, or --tensorboard")
    with failing_in_one_line(storage_url(storage)):
        frame = load_study(storage, study)
    console = Console(highlight=False)
    if out is not None:
        check_writable(out)
        write_table(frame, out)
        say(console, f"{len(frame)} trials written to {out}")
    if mlflow is not None:
        say(console, f"{log_to_mlflow(frame, mlflow)} trials added to MLflow at {mlflow}")
    if tensorboard is not None:
        say(console, f"{log_to_tensorboard(frame, tensorboard)} trials added to {tensorboard}")


def _find(study: str | None, storage: str) -> tuple[str, str | None]:
    """The storage and the name of a study that is given by name, or by its storage."""
    if study is not None and ("/" in study or study.endswith(".db") or Path(study).is_file()):
        return study, None
    return storage, study
