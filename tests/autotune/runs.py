"""`python -m autotune` as a user runs it, for the tests of whole runs."""

import sqlite3
import subprocess
import sys

import autotune

from .conftest import wait_until


def autotune_run(*options, command="run", timeout_s=90):
    return subprocess.run(
        [sys.executable, "-m", "autotune", command, *options],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def begin_run(options, num_trials):
    """Start a run and wait until so many trials are stored."""
    run = subprocess.Popen(
        [sys.executable, "-m", "autotune", "run", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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
