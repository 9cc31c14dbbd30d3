from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from mm_rec import DataError
from mm_rec.data import progress
from mm_rec.data.passes import PARALLEL_BYTES, choose_num_processes
from mm_rec.data.progress import PassProgress
from mm_rec.data.reading import Report
from mm_rec.data.workers import default_num_processes, run_in_order


def run(
    function: Callable[[int, Report], object],
    num_tasks: int,
    *,
    num_processes: int = 3,
    report: Report = lambda _: None,
) -> list[object]:
    results: list[object] = []
    run_in_order(
        function,
        range(num_tasks),
        consume=results.append,
        report=report,
        num_processes=num_processes,
    )
    return results


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_results_come_in_order_and_reports_add_up(num_processes: int) -> None:
    num_bytes: list[int] = []

    def work(task: int, report: Report) -> tuple[int, int]:
        # The first tasks take longest.
        time.sleep(0.03 if task < 3 else 0.0)
        report(task)
        return task, os.getpid()

    results = run(work, 40, num_processes=num_processes, report=num_bytes.append)
    tasks, pids = zip(*results, strict=True)
    assert tasks == tuple(range(40))
    assert len(set(pids)) == num_processes
    assert (os.getpid() in pids) == (num_processes == 1)
    assert sum(num_bytes) == sum(range(40))


def test_neither_processes_nor_threads_are_left() -> None:
    own = psutil.Process()
    before = own.num_threads(), threading.active_count(), own.num_fds(), own.children()
    run(lambda task, report: task, 10)
    assert (own.num_threads(), threading.active_count(), own.num_fds(), own.children()) == before


@pytest.mark.parametrize("num_processes", [1, 3])
def test_a_failure_is_the_callers(num_processes: int) -> None:
    def work(task: int, report: Report) -> int:
        if task == 5:
            raise DataError("a.jsonl:7 is bad")
        return task

    with pytest.raises(DataError, match=r"^a\.jsonl:7 is bad$"):
        run(work, 40, num_processes=num_processes)
    assert multiprocessing.active_children() == []


def test_an_unforeseen_failure_says_where_it_was() -> None:
    def work(task: int, report: Report) -> float:
        return 1 / task

    with pytest.raises(ZeroDivisionError) as error:
        run(work, 3)
    assert "return 1 / task" in error.value.__notes__[0]


def test_a_killed_process_is_named() -> None:
    def work(task: int, report: Report) -> int:
        if task == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    with pytest.raises(DataError, match=r"ended with code -9 .*memory"):
        run(work, 40)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    def work(task: int, report: Report) -> None:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(60.0)

    # The message of a process that Ctrl-C ends is not wanted among the test's output.
    def be_parent() -> None:
        try:
            run(work, 2, num_processes=2)
        except KeyboardInterrupt:
            os._exit(130)

    parent = get_context("fork").Process(target=be_parent)
    parent.start()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    assert parent.pid is not None
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    os.kill(parent.pid, number)
    parent.join(10.0)
    assert parent.exitcode == (130 if number is signal.SIGINT else -number)
    wait_until(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_nothing_is_forked_for_little_text_or_beside_another_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert choose_num_processes(None, PARALLEL_BYTES) == default_num_processes() == 7
    assert choose_num_processes(None, PARALLEL_BYTES - 1) == 1
    assert choose_num_processes(3, 0) == 3
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert choose_num_processes(None, PARALLEL_BYTES) == default_num_processes() == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_progress(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, visible: bool = True
) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    before = threading.active_count()
    with PassProgress(num_bytes=4_000_000, visible=visible) as shown:
        for label in ("reading", "encoding"):
            shown.start(label)
            for _ in range(4):
                shown.advance(1_000_000)
        assert threading.active_count() == before
    return stream.getvalue()


def test_progress_is_a_bar_on_a_terminal_and_a_line_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert show_progress(Terminal(), monkeypatch) == ""
    assert show_progress(io.StringIO(), monkeypatch) == ""
    monkeypatch.setattr(progress, "BAR_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "LINE_AFTER_S", 0.0)
    bar = show_progress(Terminal(), monkeypatch)
    assert all(text in bar for text in ("reading", "encoding", "75%", "100%"))
    assert show_progress(io.StringIO(), monkeypatch) == "preparing 4 MB of text ...\n"
    assert show_progress(Terminal(), monkeypatch, visible=False) == ""
    assert show_progress(io.StringIO(), monkeypatch, visible=False) == ""
