"""A machine that is suspended, and a wall clock that is set, while a run goes on.

Neither can be done to a machine that runs tests, so that a library between Python and the kernel
adds to the clocks of a run's processes what a file says. Source of what a suspension does to them:
clock_gettime(2).
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune.best_config import read_best_config

from ..commands import LONGEST_RUN_S, begin_process, begin_run, count_trials, trials
from ..conftest import wait_until

LIBRARY = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Seconds to be added, of the wall clock in one file and of the time since boot in another. */
static long shift(const char *variable)
{
    char text[32] = "";
    const char *path = getenv(variable);
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) < 0)
            text[0] = 0;
        close(file);
    }
    return atol(text);
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && id == CLOCK_REALTIME)
        now->tv_sec += shift("TEST_WALL_SHIFT");
    if (!failed && id == CLOCK_BOOTTIME)
        now->tv_sec += shift("TEST_BOOT_SHIFT");
    return failed;
}
"""
AXES = {"batch_size": [2, 4, 8], "num_workers": [0]}


@pytest.fixture
def clocks(tmp_path, monkeypatch):
    """Gives what moves the clocks of the commands that are started from here on."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        if os.environ.get("CI"):
            pytest.fail("CI needs Linux and a C compiler")
        pytest.skip("needs Linux and a C compiler")
    source, library = tmp_path / "clocks.c", tmp_path / "clocks.so"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    files = {name: tmp_path / f"{name}-shift" for name in ("wall", "boot")}
    for name, path in files.items():
        monkeypatch.setenv(f"TEST_{name.upper()}_SHIFT", str(path))
    monkeypatch.setenv("LD_PRELOAD", str(library))

    def move(*names, by_s):
        for name in names:
            temporary = files[name].with_suffix(".new")
            temporary.write_text(str(by_s))
            temporary.replace(files[name])

    return move


@pytest.mark.alone
def test_blocks_in_which_the_machine_slept_are_measured_again(study, clocks):
    run = begin_run(
        study(axes=AXES, block_s=0.2, max_blocks=3, sampler="auto"), 1, start=begin_process
    )
    # It sleeps for an hour again and again, and both clocks know of it.
    for hours in range(1, 21):
        clocks("wall", "boot", by_s=3600 * hours)
        time.sleep(0.1)
    said, errors = run.communicate(timeout=LONGEST_RUN_S)
    assert run.returncode == 0, errors
    print(said, errors)
    frame = trials()
    assert frame["num_disturbed"].sum() > 0
    # What is kept is of the time in which it was awake.
    assert (frame["seconds_per_step"] < 0.1).all()
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 8
    assert "a suspended machine" in said


def test_a_wall_clock_that_is_set_changes_nothing(study, clocks):
    run = begin_run(study(axes=AXES, sampler="auto"), 2, start=begin_process)
    clocks("wall", by_s=-86400)
    assert wait_until(lambda: count_trials() >= 4)
    clocks("wall", by_s=86400)
    said, errors = run.communicate(timeout=LONGEST_RUN_S)
    assert run.returncode == 0, errors
    print(said, errors)
    frame = trials()
    assert (frame["state"] == "complete").all()
    # The search was not cut short.
    assert {2, 4, 8} >= set(frame["batch_size"]) >= {4, 8}
    assert "the budget" not in said
    assert frame["duration_s"].between(0, 60).all()
    assert frame["start_up_s"].between(0, 60).all()
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 8
    assert "a suspended machine" not in said
