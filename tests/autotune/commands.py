"""`python -m autotune` as a user runs it, for the tests of whole runs."""

import atexit
import contextlib
import functools
import io
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import pytest

import autotune
import autotune.cli

from .conftest import wait_until

# Importing takes more than a second, and hundreds of commands are run. So one process does it, and
# is forked for each command. It has the database library look at all of its tables, too, and lets
# trials settle for a shorter time: these tests look at what happens, not at how fast anything is.
LAUNCHER = """
import json, os, select, signal, sys
import optuna
import autotune.cli, autotune.report.dataframe, autotune.report.html, autotune.report.export
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause
from autotune.study.records import Phase
from autotune.study.store import open_study
from autotune.tuning import trial_runs

optuna.logging.disable_default_handler()
store = open_study("sqlite://", "of nobody", fresh=False)
number = store.begin(ThroughputConfig(batch_size=1), Phase.SEARCH)
store.fail(number, Failure(cause=FailureCause.CRASHED, message=""))
store.records()
trial_runs.SETTLE_S = 0.3
trial_runs._REST_S = 0.5


def run(order):
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # However the tests were started (nohup).
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.close(ended)
    os.close(wakeup)
    os.setsid()
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for number in (1, 2):
        os.dup2(os.open(order["outputs"][number - 1], os.O_WRONLY), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["autotune", *order["arguments"]]
    try:
        autotune.cli.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def tell_ended():
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        running.remove(pid)
        print(pid, os.waitstatus_to_exitcode(status), flush=True)


ended, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.set_wakeup_fd(wakeup)
running = set()
while True:
    ready, _, _ = select.select([0, ended], [], [])
    if ended in ready:
        os.read(ended, 4096)
        tell_ended()
    if 0 in ready:
        line = sys.stdin.readline()
        if not line:
            break
        pid = os.fork()
        if pid == 0:
            run(json.loads(line))
            break
        running.add(pid)
        print(pid, "started", flush=True)
"""


# The budget of most runs, and what the last round of the confirmation takes beyond it beside load.
# It is less than pytest gives a test.
LONGEST_RUN_S = 150


class Launcher:
    """The process that is forked for each command."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Or lines would wait in Python, where `select` does not see them.
            bufsize=0,
        )
        self._codes = {}
        atexit.register(self._process.communicate)

    def start(self, order):
        """Start a command; gives its process number."""
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        while (found := self._read())[1] != "started":
            self._codes[found[0]] = int(found[1])
        return found[0]

    def code_of(self, pid, timeout_s):
        """The exit code of a command; None where it does not end in time."""
        end_s = time.monotonic() + timeout_s
        while pid not in self._codes:
            left_s = max(0.0, end_s - time.monotonic())
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                return None
            ended, code = self._read()
            self._codes[ended] = int(code)
        return self._codes[pid]

    def _read(self):
        pid, what = self._process.stdout.readline().decode().split()
        return int(pid), what


@functools.cache
def launcher():
    return Launcher()


class Command:
    """A command that was started, with the methods of `subprocess.Popen` that tests need."""

    def __init__(self, arguments):
        self._directory = tempfile.TemporaryDirectory()
        outputs = [Path(self._directory.name, name) for name in ("stdout", "stderr")]
        for output in outputs:
            output.touch()
        self.args = arguments
        self._outputs = outputs
        self.returncode = None
        self.pid = launcher().start(
            {
                "directory": str(Path.cwd()),
                "environment": dict(os.environ),
                "arguments": arguments,
                "outputs": list(map(str, outputs)),
            }
        )

    def poll(self, timeout_s=0.0):
        if self.returncode is None:
            self.returncode = launcher().code_of(self.pid, timeout_s)
        return self.returncode

    def communicate(self, timeout=LONGEST_RUN_S):
        """Wait for its end; gives what it wrote, which is shown where a test fails."""
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        written = [output.read_text() for output in self._outputs]
        self._directory.cleanup()
        print("autotune", *self.args, *("\n" + text for text in written))
        return written

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def autotune_run(*options, command="run", timeout_s=LONGEST_RUN_S):
    """Run a command to its end, in a process of its own."""
    started = Command([command, *options])
    if started.poll(timeout_s) is None:
        started.kill()
    stdout, stderr = started.communicate()
    return subprocess.CompletedProcess(started.args, started.returncode, stdout, stderr)


def autotune_here(*options, command):
    """Run a command that starts no trials in this process, which has imported everything."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        mock.patch.object(sys, "argv", ["autotune", command, *options]),
        pytest.raises(SystemExit) as ended,
    ):
        # As a process has it that runs a command.
        warnings.simplefilter("ignore", DeprecationWarning)
        autotune.cli.main()
    code = ended.value.code
    return subprocess.CompletedProcess(
        [command, *options], code, stdout.getvalue(), stderr.getvalue()
    )


def begin_process(arguments):
    """Start a command as a user's shell does: it loads libraries anew, and writes into pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "autotune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begin_run(options, num_trials, start=Command):
    """Start a run and wait until so many trials are stored."""
    run = start(["run", *options])
    assert wait_until(lambda: count_trials() >= num_trials or run.poll() is not None, 60)
    assert run.poll() is None
    return run


def trials():
    return autotune.load_study("studies/autotune.db")


def count_trials():
    try:
        with sqlite3.connect("file:studies/autotune.db?mode=ro", uri=True) as connection:
            return connection.execute("SELECT COUNT(*) FROM trials").fetchone()[0]
    except sqlite3.Error:
        return 0
