"""Runs that are interrupted, killed, or not alone on the machine."""

import json
import signal
import time
from pathlib import Path

import pytest

from autotune.best_config import read_best_config
from autotune.system.machine import affinity

from ..commands import Command, autotune_run, begin_run, count_trials, trials
from ..conftest import processes_of, stop, wait_until

LONG = {
    "axes": {"batch_size": [1, 2, 4, 6, 8], "num_workers": [0]},
    "block_s": 0.15,
}


@pytest.mark.alone
@pytest.mark.parametrize(
    ("number", "sampler"),
    [(signal.SIGINT, "auto"), (signal.SIGTERM, "grid"), (signal.SIGHUP, "grid")],
)
def test_an_interrupted_run_ends_at_once(study, number, sampler):
    options = study(**{**LONG, "sampler": sampler})
    Path("best_config.yaml").write_text("mine")
    run = begin_run(options, 3 if sampler == "auto" else 4)
    run.send_signal(number)
    start_s = time.monotonic()
    _, stderr = run.communicate(timeout=10)
    assert time.monotonic() - start_s < 2
    assert run.returncode == 130
    assert "interrupted; best so far: batch" in stderr
    assert "Traceback" not in stderr
    assert wait_until(lambda: not processes_of(Path.cwd() / "train it.py"), 1.0)
    assert Path("best_config.yaml").read_text() == "mine"
    assert not (trials()["state"] == "running").any()


def test_what_an_interrupted_run_measured_is_kept_by_the_next(study):
    options = study(**LONG)
    run = begin_run(options, 4)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=10)
    before = trials().query("state == 'complete' and phase == 'search'")
    assert autotune_run(*options).returncode == 0
    after = trials().query("state == 'complete' and phase in ('search', 'probe')")
    assert set(before["number"]) <= set(after["number"])
    assert sorted(after["batch_size"]) == LONG["axes"]["batch_size"]
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 8


def test_a_killed_run_leaves_nothing_running_and_goes_on_later(study):
    options = study(**LONG)
    run = begin_run(options, 4)
    run.kill()
    run.communicate()
    assert wait_until(lambda: not processes_of(Path.cwd() / "train it.py"))
    before = trials()
    assert (before["state"] != "complete").sum() <= 1

    assert autotune_run(*options).returncode == 0
    frame = trials()
    assert not (frame["state"] == "running").any()
    assert set(frame.query("state == 'failed'")["cause"]) <= {"interrupted"}
    after = frame.query("state == 'complete' and phase in ('search', 'probe')")
    assert sorted(after["batch_size"]) == LONG["axes"]["batch_size"]


def test_a_second_study_of_a_command_starts_from_what_the_first_one_found(study):
    options = study(sampler="auto", axes={"batch_size": [4, 8], "num_workers": [0]})
    assert "first guess" not in autotune_run(*options).stdout
    done = autotune_run(*options, "--fresh")
    assert done.returncode == 0, done.stderr
    assert "an earlier study of this command serves as a first guess" in done.stdout
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 8
    # It is never the answer: what is written was measured in this study.
    assert (trials().query("phase == 'search'")["state"] == "complete").any()


def test_two_runs_on_one_storage_do_not_mix(study):
    options = study(**LONG)
    run = begin_run(options, 2)
    second = autotune_run(*options)
    assert second.returncode == 2
    assert "another `autotune run` is using it" in second.stderr
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=10)


@pytest.mark.alone
def test_beside_a_hog_that_stays_there_is_no_answer_unless_it_is_asked_for(study, hogs):
    # Waiting takes a third of the budget.
    axes = {"batch_size": [4, 8], "num_workers": [0]}
    options = study(allow_busy=False, budget="8s", block_s=0.1, axes=axes)
    Path("best_config.yaml").write_text("mine")
    processes = hogs(len(affinity()))
    done = autotune_run(*options)
    assert done.returncode == 1, done.stdout
    assert "error: the machine is too busy to measure on: " in done.stderr
    assert any(f"while True: pass (process {hog.pid}, " in done.stderr for hog in processes)
    assert "--allow-busy" in done.stderr
    assert Path("best_config.yaml").read_text() == "mine"
    assert count_trials() == 0

    done = autotune_run(*options, "--allow-busy", "--budget", "100s")
    assert done.returncode == 0, done.stderr
    assert "were disturbed throughout by other processes (" in done.stdout
    assert any(f"while True: pass (process {hog.pid}, " in done.stdout for hog in processes)
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 8
    assert (trials()["num_disturbed"] > 0).all()


@pytest.mark.alone
def test_a_hog_that_leaves_is_waited_for(study, hogs):
    options = study(allow_busy=False, axes={"batch_size": [4, 8], "num_workers": [0]})
    processes = hogs(len(affinity()))
    run = Command(["run", *options, "--json"])
    # It has opened its study, and looks at what else runs.
    assert wait_until(lambda: Path("studies/autotune.db").exists(), 30)
    time.sleep(2.0)
    assert count_trials() == 0
    for hog in processes:
        stop(hog)
    stdout, _ = run.communicate()
    assert run.returncode == 0
    assert json.loads(stdout)["waited_s"] > 1
