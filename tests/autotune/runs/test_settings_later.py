"""`autotune apply` and `autotune check`: settings after the run that found them."""

import contextlib
import dataclasses
import json
import shlex
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import yaml

from autotune.best_config import read_best_config, write_best_config

from ..commands import Command, autotune_run, count_trials
from ..conftest import processes_of, wait_until
from ..test_best_config import make_best

BEST = Path("best_config.yaml")
# A step takes as long whatever its batch holds.
SCRIPT = {"item": "time.sleep(0.0005)", "step": "time.sleep(0.02)"}
AXES = {"batch_size": [4, 8, 16], "num_workers": [0], "gc": ["default"]}


@pytest.fixture
def tuned(study):
    """A study that has come to its answer; gives the options that name it."""
    options = study(script=SCRIPT, axes=AXES)
    done = autotune_run(*options)
    assert done.returncode == 0, done.stderr
    assert read_best_config(BEST).config.batch_size == 16
    return options, done.stdout


# Time for a round.
QUICK = ("--allow-busy", "--budget", "5s")


def check(*options):
    return autotune_run(str(BEST), *QUICK, *options, command="check")


def change(**settings):
    """Edit the file by hand."""
    data = yaml.safe_load(BEST.read_text())
    data["config"] |= settings
    BEST.write_text(yaml.safe_dump(data))


# By itself: what one round measures is compared with what another stated, and beside other tests a
# step that sleeps may take twice as long.
@pytest.mark.alone
def test_another_batch_size_is_taken_without_a_search(tuned):
    options, printed = tuned
    assert "the best settings of each batch size" in printed
    assert "autotune apply --batch-size N" in printed
    before = count_trials()
    done = autotune_run("--batch-size", "8", *options, "--out", "other.yaml", command="apply")
    assert done.returncode == 0, done.stderr
    assert "times the throughput of the script's own settings" in done.stdout
    best = read_best_config(Path("other.yaml"))
    assert best.config.batch_size == 8
    assert best.requirements.batch_size == 8
    assert 1.5 < best.speedup.ratio < 2.5
    # The baseline by itself, and a round of the two.
    assert count_trials() == before + 3
    assert read_best_config(BEST).config.batch_size == 16
    # It is what was asked for, although another batch size is faster.
    done = autotune_run("other.yaml", *QUICK, command="check")
    assert done.returncode == 0, done.stdout
    # A study from before there was some setting goes on.
    with contextlib.closing(sqlite3.connect("studies/autotune.db")) as database, database:
        where = "study_user_attributes WHERE key = 'workload'"
        [(text,)] = database.execute(f"SELECT value_json FROM {where}").fetchall()
        workload = json.loads(text)
        del workload["baseline"]["malloc"]
        database.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = 'workload'",
            [json.dumps(workload)],
        )
    assert "nothing is measured again" in autotune_run(*options).stdout
    # The script's own batch size is no gain over itself.
    done = autotune_run("--batch-size", "4", *options, "--out", "own.yaml", command="apply")
    assert "these are the script's own settings" in done.stdout
    assert read_best_config(Path("own.yaml")).config.batch_size == 4


@pytest.mark.alone
def test_a_file_is_checked_by_running_it(tuned):
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best_config.yaml holds: its settings reach" in done.stdout
    assert "nothing that its study knows is faster" in done.stdout
    before = count_trials()
    change(batch_size=8)
    done = check("--json")
    assert done.returncode == 3
    verdict = json.loads(done.stdout)
    assert verdict["holds"] is False
    assert "batch 16" in verdict["sentence"]
    assert count_trials() == before
    change(batch_size=16)
    data = yaml.safe_load(BEST.read_text())
    data["study"]["versions"]["python"] = "3.1.4"
    data["workload"]["samples_per_epoch"] = 10
    BEST.write_text(yaml.safe_dump(data))
    done = check("--storage", "none.db", "--quiet")
    assert done.returncode == 3
    [line] = done.stdout.splitlines()
    assert "may not hold any more" in line
    assert "python: 3.1.4, here" in line


def test_what_cannot_be_applied_or_checked_is_told_in_one_line(study):
    options = study(script=SCRIPT, axes=AXES)
    for command, arguments, message in (
        ("apply", options, "nothing is asked for"),
        ("apply", ("--batch-size", "8", *options), "there is no such file"),
        ("apply", ("--max-memory", "much", *options), "must look like 8GiB"),
        ("check", ("none.yaml",), "none.yaml"),
    ):
        done = autotune_run(*arguments, command=command)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert autotune_run(*options, "--max-trials", "1").returncode == 0
    done = autotune_run("--batch-size", "5", *options, command="apply")
    assert done.returncode == 2
    assert "its batch sizes are 4, 8, 16" in done.stderr


def test_an_interrupted_check_leaves_nothing(light_script):
    command = light_script(**SCRIPT)
    script, best = command[-1], make_best()
    record = dataclasses.replace(best.study, command=shlex.join(command))
    write_best_config(BEST, dataclasses.replace(best, study=record))
    process = Command(["check", str(BEST), "--allow-busy"])
    assert wait_until(lambda: len(processes_of(script)) >= 1, 30)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert wait_until(lambda: not processes_of(script), 10)
