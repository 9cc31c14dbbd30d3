"""Storages: where studies are kept, opened, shown without passwords, and locked."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy
from filelock import FileLock, Timeout

from autotune.errors import BadInputError, StorageError
from autotune.study.server import ServerStorage, one_at_a_time

DEFAULT_STORAGE = Path("studies/autotune.db")


def storage_url(storage: str | Path) -> str:
    """Optuna's URL of a storage: a URL stays one, a path is an SQLite file.

    `postgresql://` without the name of a driver means psycopg 3.
    """
    text = str(storage)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return f"sqlite:///{Path(text).resolve()}"
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else text


def shown_url(url: str) -> str:
    """A storage's URL without its password, for people and files."""
    return str(sqlalchemy.engine.make_url(url).render_as_string(hide_password=True))


def open_storage(url: str, *, writable: bool) -> optuna.storages.RDBStorage:
    """The storage at `url`; where it is only read, an SQLite file may be read-only.

    Raises:
        BadInputError: It cannot be reached or read, or a newer Optuna wrote it.
    """
    path = sqlite_path(url)
    storage: optuna.storages.RDBStorage
    try:
        if path is not None and writable:
            path.parent.mkdir(exist_ok=True)
            _use_write_ahead_log(path)
        if writable and is_on_server(url):
            with one_at_a_time(url):
                storage = ServerStorage(url)
        elif is_on_server(url):
            # What is read may be read again and again, and is not made here.
            storage = optuna.storages.RDBStorage(
                url,
                engine_kwargs={"poolclass": sqlalchemy.pool.NullPool},
                skip_table_creation=True,
            )
        else:
            storage = optuna.storages.RDBStorage(url)
    except Exception as error:
        # Drivers, SQLAlchemy and Optuna each have errors of their own for the same few troubles.
        expected = (
            sqlalchemy.exc.SQLAlchemyError,
            sqlite3.Error,
            optuna.exceptions.OptunaError,
            OSError,
            RuntimeError,
            ImportError,
            ValueError,
        )
        if not isinstance(error, expected):
            raise
        reason = _reason(error)
        if isinstance(error, ImportError) and url.startswith("postgresql"):
            reason += ": pip install 'autotune[postgres]'"
        raise BadInputError(f"storage {shown_url(url)}: cannot be opened: {reason}") from error
    if path is not None and writable:
        sqlalchemy.event.listen(storage.engine, "connect", _sync_at_checkpoints)
        storage.engine.dispose()
    return storage


@contextlib.contextmanager
def failing_in_one_line(url: str) -> Iterator[None]:
    """While a storage is used, what goes wrong with it is told in one line.

    Raises:
        StorageError: The disk is full, the database is locked, gone or damaged.
    """
    try:
        yield
    except (
        optuna.exceptions.StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
    ) as error:
        raise StorageError(
            f"storage {shown_url(url)}: {_reason(error)}. What was stored before is kept: when the "
            "cause is mended, the same command goes on"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of what an error came from: Optuna's own says little."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0]


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """While stored values are read: the file may be damaged, or edited.

    Raises:
        BadInputError: A value is not what it should be.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInputError(
            f"{what}: damaged ({reason}): use a copy of the storage, or another one with --storage"
        ) from error


@contextlib.contextmanager
def locked_storage(url: str) -> Iterator[None]:
    """Keep other runs away from an SQLite storage.

    The lock goes with the process, `kill -9` included.

    Raises:
        BadInputError: Another run holds it.
    """
    path = sqlite_path(url)
    if path is None:
        yield
        return
    lock = FileLock(path.with_name(f".{path.name}.lock"), blocking=False)
    try:
        path.parent.mkdir(exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise BadInputError(
            f"storage {path}: another `autotune run` is using it: wait for it, or name another "
            "with --storage"
        ) from error
    except (OSError, NotImplementedError) as error:
        # The second where the file system knows no locks.
        reason = getattr(error, "strerror", None) or error
        raise BadInputError(f"storage {path}: cannot be written: {reason}") from error
    try:
        yield
    finally:
        lock.release()


def sqlite_path(url: str) -> Path | None:
    """The file behind the URL of an SQLite storage; None for any other database.

    Raises:
        BadInputError: It is no URL.
    """
    parsed = _parsed(url)
    if not parsed.drivername.startswith("sqlite"):
        return None
    return Path(parsed.database) if parsed.database else None


def _parsed(url: str) -> sqlalchemy.engine.URL:
    try:
        return sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise BadInputError("storage: must be a path or a database URL") from error


def is_on_server(url: str) -> bool:
    """Whether a storage is one that several machines can use at the same time.

    Raises:
        BadInputError: It is no URL.
    """
    return not _parsed(url).drivername.startswith("sqlite")


def _use_write_ahead_log(path: Path) -> None:
    """Readers do not block the writer, and a killed writer leaves a sound file."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _sync_at_checkpoints(connection: sqlite3.Connection, _: object) -> None:
    """With a write-ahead log this loses nothing to a killed process, and saves a sync a write."""
    connection.execute("PRAGMA synchronous=NORMAL")
