"""Several runs on one PostgreSQL server: `python benchmarks/shared_database.py`.

The machines are host names on this one (root and `unshare` needed), the server is started for it.

  --only answers   1, 2 and 4 machines search a loop that sleeps (and so leaves them the cores),
                   then 4 of which one is killed, and 2 while the server is restarted: the answer,
                   how long it took, trials, what ran twice at the same time, what was lost
  --only race      runs that meet an empty database, 50 times
  --only limits    what a trial writes and reads, and how many of these the server stands per second
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import sqlalchemy
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "autotune"))
import postgres  # noqa: E402
from made_up import keep_trial  # noqa: E402

from autotune.config import ThroughputConfig  # noqa: E402
from autotune.study.store import open_study  # noqa: E402

# Loading takes 2 ms a sample, and a step 10 ms and 0.2 ms a sample.
SCRIPT = """
import time, torch, autotune

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 100_000
    def __getitem__(self, index):
        time.sleep(0.002)
        return torch.zeros(1)

def main():
    config = autotune.load_config(
        "best_config.yaml", default=autotune.ThroughputConfig(batch_size=4)
    )
    for batch in autotune.steps(config.dataloader(Data())):
        time.sleep(0.010 + 0.0002 * len(batch))

if __name__ == "__main__":
    main()
"""
STUDY = {
    "name": "sleepy",
    "command": [sys.executable, "train.py"],
    "axes": {
        "batch_size": [4, 8, 16, 32, 64],
        "num_workers": [0, 1, 2, 4],
        "prefetch_factor": [2, 4],
        "num_threads": [1],
        "gc": ["default"],
    },
    "budget": "120s",
    "allow_busy": True,
}
NUM_RACES, NUM_RACERS = 50, 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("answers", "race", "limits"), action="append")
    parts = parser.parse_args().only or ["answers", "race", "limits"]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for part in parts:
        {"answers": answers, "race": race, "limits": limits}[part]()


@contextlib.contextmanager
def fresh_server() -> Iterator[postgres.Server]:
    with tempfile.TemporaryDirectory() as folder, postgres.server(Path(folder) / "pg") as server:
        yield server


def answers() -> None:
    """What several machines find, also where something dies."""
    print(f"{'machines':>8} {'':14} {'s':>5} {'trials':>7} {'twice':>6} {'lost':>5}  answer")
    for number, disturbance in ((1, ""), (2, ""), (4, ""), (4, "one is killed"), (2, "restart")):
        with fresh_server() as server, tempfile.TemporaryDirectory() as folder:
            Path(folder, "train.py").write_text(SCRIPT)
            Path(folder, "study.yaml").write_text(yaml.safe_dump(STUDY))
            began_s = time.monotonic()
            runs = [start(folder, server.url, f"node{place}") for place in range(number)]
            if disturbance:
                wait_for_trials(server.url, 4 * number)
                if disturbance == "restart":
                    server.restart()
                else:
                    os.killpg(runs.pop().pid, signal.SIGKILL)
            codes = [run.wait() for run in runs]
            took_s = time.monotonic() - began_s
            trials = stored_trials(server.url)
            found = {path.stem: yaml.safe_load(path.read_text()) for path in answers_in(folder)}
            [answer] = found.values() if len(found) == 1 else [None]
            told = "no answer" if answer is None else told_answer(answer)
            print(
                f"{number:8} {disturbance:14} {took_s:5.0f} {len(trials):7} "
                f"{num_at_once(trials):6} "
                f"{sum(not t.state.is_finished() for t in trials):5}  {told}"
                + ("" if not any(codes) else f" (exit codes {codes})"),
                flush=True,
            )


def start(folder: str, url: str, host: str) -> subprocess.Popen[str]:
    command = (sys.executable, "-m", "autotune", "run", "--study", "study.yaml", "--quiet")
    line = shlex.join((*command, "--storage", url))
    return subprocess.Popen(
        ("unshare", "--uts", "sh", "-c", f"hostname {host}; exec {line}"),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )


def answers_in(folder: str) -> list[Path]:
    return sorted(Path(folder, "best_config.d").glob("*.yaml"))


def told_answer(found: dict[str, dict[str, object]]) -> str:
    config = ThroughputConfig(**found["config"])  # type: ignore[arg-type]
    speedup = found["speedup"]
    return (
        f"{config.summary}, {speedup['ratio']:.2f}x ({speedup['low']:.2f} to {speedup['high']:.2f})"
    )


def stored_trials(url: str) -> list[optuna.trial.FrozenTrial]:
    engine = {"poolclass": sqlalchemy.pool.NullPool}
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=engine)
        names = optuna.get_all_study_names(storage)
        return [
            t for name in names for t in optuna.load_study(study_name=name, storage=storage).trials
        ]
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError):
        return []


def wait_for_trials(url: str, number: int) -> None:
    while len(stored_trials(url)) < number:
        time.sleep(0.2)


def num_at_once(trials: list[optuna.trial.FrozenTrial]) -> int:
    """Pairs of trials of the search with the same configuration that ran at the same time."""
    search = [t for t in trials if t.user_attrs.get("phase") == "search" and t.datetime_complete]
    return sum(
        one.user_attrs["config"] == other.user_attrs["config"]
        and one.datetime_start < other.datetime_complete
        and other.datetime_start < one.datetime_complete
        for one, other in itertools.combinations(search, 2)
    )


def together(number: int, work: Callable[..., None], *args: object) -> tuple[list[object], int]:
    """What processes that begin at the same moment put into a queue, and how many failed."""
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(number), context.Queue()
    runs = [context.Process(target=work, args=(barrier, queue, *args)) for _ in range(number)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    failed = sum(run.exitcode != 0 for run in runs)
    return [queue.get() for _ in range(number - failed)], failed


def race() -> None:
    failed = 0
    with fresh_server() as server:
        for place in range(NUM_RACES):
            url = new_database(server.url, f"race{place}")
            _, failures = together(NUM_RACERS, open_one, url)
            failed += failures
    print(f"{NUM_RACES} empty databases, {NUM_RACERS} runs that meet each: {failed} failed")


def new_database(url: str, name: str) -> str:
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.rpartition("/")[0] + "/" + name


def open_one(barrier, queue, url) -> None:  # noqa: ANN001
    barrier.wait()
    store = open_study(url, "race", fresh=False)
    queue.put(store.name)
    store.close()


def limits() -> None:
    """How many trials a second the server stands, and what each takes of it."""
    with fresh_server() as server:
        engine = sqlalchemy.create_engine(server.url, poolclass=sqlalchemy.pool.NullPool)
        size_before, commits_before = statistics_of(engine)
        number = 50
        store_some(contextlib.nullcontext(), None, server.url, number, seconds=None)
        size, commits = statistics_of(engine)
        print(
            f"a trial: {(size - size_before) / number / 1024:.1f} KiB, "
            f"{(commits - commits_before) / number:.0f} transactions"
        )
        print(f"{'runs':>5} {'trials/s':>9} {'ms a trial':>11}")
        for runs in (1, 2, 4, 8, 16, 32):
            counts, failed = together(runs, store_some, server.url, None, 8.0)
            rate = sum(count for count, _ in counts) / 8.0
            each_ms = statistics.median(ms for _, ms in counts) if counts else float("nan")
            print(
                f"{runs:5} {rate:9.1f} {each_ms:11.0f}" + (f"  {failed} failed" if failed else "")
            )


def statistics_of(engine: sqlalchemy.Engine) -> tuple[int, int]:
    query = "SELECT pg_database_size(current_database()), xact_commit FROM pg_stat_database "
    query += "WHERE datname = current_database()"
    time.sleep(1.5)
    with engine.connect() as connection:
        size, commits = connection.execute(sqlalchemy.text(query)).one()
    return int(size), int(commits)


def store_some(barrier, queue, url, number, seconds) -> None:  # noqa: ANN001
    """Trials one after another, as a search stores them: news, claim, outcome."""
    store = open_study(url, f"limits{os.getpid() % 7}", fresh=False)
    if hasattr(barrier, "wait"):
        barrier.wait()
    began_s = time.monotonic()
    count = 0
    while (number is None or count < number) and (
        seconds is None or time.monotonic() - began_s < seconds
    ):
        store.records()
        store.running_elsewhere()
        config = ThroughputConfig(batch_size=1 + (os.getpid() * 1000 + count) % 10**6)
        keep_trial(store, config, 100.0)
        count += 1
    if queue is not None:
        queue.put((count, 1000 * (time.monotonic() - began_s) / max(1, count)))
    store.close()


if __name__ == "__main__":
    main()
