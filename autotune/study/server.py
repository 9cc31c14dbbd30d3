"""A storage on a database server, which several machines use at the same time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
import sqlalchemy

# A run says so often that its trial runs; one that did not for so long has ended.
HEARTBEAT_S, GRACE_S = 30, 120
# A server that is restarted is away for seconds. Less than the above, with a sign of life between:
# when it is back, trials that ran meanwhile are not taken for dead.
PATIENCE_S = 75.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
# What runs lock on a PostgreSQL server, where they must do something one after another.
_LOCK = 0x6175746F74756E65
# The same for places that machines take: a pair of 32-bit numbers, the second is the study's.
_SEATS = 0x61757400
# Of an SQLSTATE: no connection; too many of them; shut down, crashed, starting.
# Source: https://www.postgresql.org/docs/15/errcodes-appendix.html
_AWAY = ("08", "53300", "57P")
# What it says, where no connection was made that could give a state.
_BUSY = ("too many clients", "connection slots are reserved", "the database system is")

Given = ParamSpec("Given")
Result = TypeVar("Result")


def _patiently(
    method: Callable[Concatenate[ServerStorage, Given], Result],
) -> Callable[Concatenate[ServerStorage, Given], Result]:
    """The same, again and again while the server is away."""

    def call(storage: ServerStorage, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        began_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                return method(storage, *args, **kwargs)
            except (
                optuna.exceptions.StorageInternalError,
                sqlalchemy.exc.SQLAlchemyError,
            ) as error:
                if not _is_away(error) or time.monotonic() - began_s > PATIENCE_S:
                    raise
            if pause_s == _LONGEST_PAUSE_S:
                warnings.warn(
                    f"the database server is away; waiting for it for up to {PATIENCE_S:.0f} s",
                    RuntimeWarning,
                    stacklevel=2,
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    return call


class ServerStorage(optuna.storages.RDBStorage):
    """Optuna's storage, which waits for a server that is away for a while.

    Each method is one transaction, which either took place or did not. Where nobody knows, since
    the connection broke while it was confirmed, doing it again leaves at most a trial that says
    nothing.
    """

    def __init__(self, url: str) -> None:
        self._seat: sqlalchemy.Connection | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                url,
                # A connection that broke while nobody used it is replaced.
                engine_kwargs={"pool_pre_ping": True, "connect_args": _connect_arguments(url)},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
            )

    @contextlib.contextmanager
    def one_at_a_time(self, study_id: int) -> Iterator[None]:
        """Have the runs of a study do something one after another; see the function."""
        connection = self._lock(study_id)
        try:
            yield
        finally:
            # What was locked by a connection ends with it.
            connection.invalidate()
            connection.close()

    @_patiently
    def _lock(self, study_id: int) -> sqlalchemy.Connection:
        connection = self.engine.connect()
        try:
            _lock(connection, study_id)
        except BaseException:
            connection.close()
            raise
        return connection

    def take_seat(self, study_id: int, number: int) -> bool:
        """Become one of so many that search a study; says whether there was a place.

        It is kept until this process ends, however that happens.
        """
        connection = self._connect()
        if connection.dialect.name != "postgresql":
            connection.close()
            return True
        for seat in range(number):
            key = {"kind": _SEATS + seat, "study": study_id}
            taken = sqlalchemy.text("SELECT pg_try_advisory_lock(:kind, :study)")
            if connection.execute(taken, key).scalar():
                connection.commit()
                self._seat = connection
                return True
        connection.close()
        return False

    @_patiently
    def _connect(self) -> sqlalchemy.Connection:
        return self.engine.connect()

    def close(self) -> None:
        """Close all connections, and leave the place that was taken."""
        if self._seat is not None:
            self._seat.invalidate()
            self._seat.close()
            self._seat = None
        self.rest()

    def rest(self) -> None:
        """Close the connections: nothing is stored for a while, and a server has few of them."""
        self.engine.dispose()

    get_all_studies = _patiently(optuna.storages.RDBStorage.get_all_studies)
    get_study_id_from_name = _patiently(optuna.storages.RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _patiently(optuna.storages.RDBStorage.get_study_name_from_id)
    get_study_directions = _patiently(optuna.storages.RDBStorage.get_study_directions)
    get_study_user_attrs = _patiently(optuna.storages.RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _patiently(optuna.storages.RDBStorage.get_study_system_attrs)
    set_study_user_attr = _patiently(optuna.storages.RDBStorage.set_study_user_attr)
    set_study_system_attr = _patiently(optuna.storages.RDBStorage.set_study_system_attr)
    get_trial = _patiently(optuna.storages.RDBStorage.get_trial)
    set_trial_state_values = _patiently(optuna.storages.RDBStorage.set_trial_state_values)
    set_trial_user_attr = _patiently(optuna.storages.RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _patiently(optuna.storages.RDBStorage.set_trial_system_attr)
    get_trial_id_from_study_id_trial_number = _patiently(
        optuna.storages.RDBStorage.get_trial_id_from_study_id_trial_number
    )
    # Optuna's cache in front of a storage calls these.
    _create_new_trial = _patiently(optuna.storages.RDBStorage._create_new_trial)
    _get_trials = _patiently(optuna.storages.RDBStorage._get_trials)
    _get_stale_trial_ids = _patiently(optuna.storages.RDBStorage._get_stale_trial_ids)


@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "do_connect")
def _connect_patiently(
    dialect: Any,  # noqa: ANN401
    _: object,
    arguments: list[Any],
    parameters: dict[str, Any],
) -> Any:  # noqa: ANN401
    """A connection to a server that is there, as soon as it has one to give."""
    began_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
    while True:
        try:
            return dialect.connect(*arguments, **parameters)
        except dialect.loaded_dbapi.Error as error:
            is_busy = any(words in str(error) for words in _BUSY)
            if not is_busy or time.monotonic() - began_s > PATIENCE_S:
                raise
        # Not all at the same moment.
        time.sleep(random.uniform(0.5, 1.0) * pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class Heartbeat:
    """Says while a trial runs that its run is alive.

    Args:
        server: Is told.
    """

    def __init__(self, server: ServerStorage) -> None:
        self._server = server
        self._running: dict[int, threading.Event] = {}

    def begin(self, trial_id: int) -> None:
        """A trial begins."""
        over = self._running[trial_id] = threading.Event()
        self._beat(trial_id)

        def go_on() -> None:
            while not over.wait(HEARTBEAT_S):
                self._beat(trial_id)

        threading.Thread(target=go_on, daemon=True, name="heartbeat").start()

    def end(self, trial_id: int) -> None:
        """It has ended."""
        over = self._running.pop(trial_id, None)
        if over is not None:
            over.set()

    def _beat(self, trial_id: int) -> None:
        # A server that is away now may be there again the next time.
        with contextlib.suppress(
            optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError
        ):
            self._server.record_heartbeat(trial_id)
            self._server.rest()


@contextlib.contextmanager
def one_at_a_time(url: str) -> Iterator[None]:
    """Have runs on one server do something one after another; the lock ends with the process.

    Two runs that make Optuna's tables at once would fail.
    """
    arguments = _connect_arguments(url)
    engine = sqlalchemy.create_engine(
        url, poolclass=sqlalchemy.pool.NullPool, connect_args=arguments
    )
    with engine.connect() as connection:
        _lock(connection, 0)
        yield


def _connect_arguments(url: str) -> dict[str, Any]:
    """Have PostgreSQL notice within a minute that a machine is gone: its locks end then.

    Source: https://www.postgresql.org/docs/15/runtime-config-connection.html (tcp_keepalives_idle;
    two hours by default).
    """
    if sqlalchemy.engine.make_url(url).get_backend_name() != "postgresql":
        return {}
    keepalives = {"idle": 30, "interval": 10, "count": 3}
    return {"options": " ".join(f"-c tcp_keepalives_{name}={n}" for name, n in keepalives.items())}


def _lock(connection: sqlalchemy.Connection, subject: int) -> None:
    """Lock a subject until the connection ends; servers other than PostgreSQL have no such lock.

    Source: https://www.postgresql.org/docs/15/explicit-locking.html (advisory locks).
    """
    if connection.dialect.name == "postgresql":
        key = {"key": _LOCK + subject}
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), key)
        connection.commit()


def _is_away(error: BaseException) -> bool:
    """Whether an error says that the server cannot be reached now."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, sqlalchemy.exc.DBAPIError):
            state: Any = getattr(found.orig, "sqlstate", None)
            if state is None:
                return found.connection_invalidated or isinstance(
                    found, sqlalchemy.exc.OperationalError
                )
            return str(state).startswith(_AWAY)
        found = found.__cause__
    return False
