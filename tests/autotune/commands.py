"""`python -m autotune` as a user runs it, for the tests of whole runs."""

import atexit
import functools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import autotune

from .conftest import wait_until

# Importing takes most of a second, and hundreds of commands are run. So one process does it, and is
# forked for each command.
LAUNCHER = """
import json, os, signal, sys
import autotune.cli, autotune.report.dataframe, autotune.report.html, autotune.report.export
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
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
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@functools.cache
def launcher():
    started = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    atexit.register(started.communicate)
    return started


def autotune_run(*options, command="run", timeout_s=90):
    """Run a command to its end, in a process of its own."""
    started = launcher()
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory, name) for name in ("stdout", "stderr")]
        for output in outputs:
            output.touch()
        order = {
            "directory": str(Path.cwd()),
            "environment": dict(os.environ),
            "arguments": [command, *options],
            "outputs": list(map(str, outputs)),
        }
        started.stdin.write(json.dumps(order) + "\n")
        started.stdin.flush()
        pid = int(started.stdout.readline())
        patience = threading.Timer(timeout_s, os.kill, (pid, signal.SIGKILL))
        patience.start()
        code = int(started.stdout.readline())
        patience.cancel()
        patience.join()
        stdout, stderr = (output.read_text() for output in outputs)
    return subprocess.CompletedProcess([command, *options], code, stdout, stderr)


def begin_run(options, num_trials):
    """Start a run and wait until so many trials are stored."""
    run = subprocess.Popen(
        [sys.executable, "-m", "autotune", "run", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # However the tests were started (nohup).
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
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
