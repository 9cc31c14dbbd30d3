"""Runs on several machines that share a PostgreSQL server; the machines are host names."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
import yaml

from autotune.best_config import read_best_config
from autotune.settings_files import file_of_kind
from autotune.system.machine import this_machine

from .. import postgres
from ..commands import LONGEST_RUN_S
from ..conftest import wait_until

_CAN_RENAME = shutil.which("unshare") and os.geteuid() == 0
pytestmark = [
    pytest.mark.skipif(
        postgres.program("initdb") is None and "CI" not in os.environ,
        reason="PostgreSQL's server is not installed",
    ),
    pytest.mark.skipif(
        not _CAN_RENAME and "CI" not in os.environ,
        reason="host names of one's own need root and unshare",
    ),
]
# Trials settle for a shorter time, as for the other tests of whole runs.
MAIN = """
import autotune.cli
from autotune.tuning import trial_runs
trial_runs.SETTLE_S, trial_runs._REST_S = 0.3, 0.5
autotune.cli.main()
"""
# Whether the settings that training finds are those of its own kind of machine.
OWN_SETTINGS = """
from pathlib import Path
from autotune.best_config import read_settings
from autotune.system.machine import this_machine
path, _ = read_settings(Path("best_config.yaml"), this_machine())
print("own" if path.stem == this_machine().kind else path)
"""
# What `srun --nodes 4` sets for a task: the trainings are none of one another's ranks.
AS_BY_SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}
AXES = {"batch_size": [4, 8, 16, 32], "num_workers": [0], "gc": ["default"]}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    with postgres.server(tmp_path_factory.mktemp("postgres")) as found:
        yield found


@pytest.fixture
def start(study, request, database):
    """Starts a run on a machine of some name; gives its process."""
    study(sampler="auto", axes=AXES, name=f"s{abs(hash(request.node.name))}")
    started = []

    def run(host, *options, prefix=()):
        command = (sys.executable, "-c", MAIN, "run", "--study", "quick.yaml")
        command += ("--storage", database.url, *options)
        line = shlex.join((*prefix, *command))
        process = subprocess.Popen(
            ("unshare", "--uts", "sh", "-c", f"hostname {host}; exec {line}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | AS_BY_SRUN,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def stored(database):
    """The study of this test, or those of all kinds of machines."""
    name = yaml.safe_load(Path("quick.yaml").read_text())["name"]
    storage = optuna.storages.RDBStorage(
        database.url, engine_kwargs={"poolclass": sqlalchemy.pool.NullPool}
    )
    return [
        optuna.load_study(study_name=found, storage=storage)
        for found in optuna.get_all_study_names(storage)
        if found.startswith(f"{name}@")
    ]


def trials_of(database, host=None):
    found = [trial for study in stored(database) for trial in study.trials]
    return [t for t in found if host in (None, t.user_attrs.get("coordinator", {}).get("host"))]


def ended_well(process):
    output, _ = process.communicate(timeout=LONGEST_RUN_S)
    print(output)
    assert process.returncode == 0, output
    return output


@pytest.mark.long
def test_machines_of_one_kind_find_one_answer_and_other_kinds_their_own(start, database):
    first, second = start("node1"), start("node2")
    ended_well(first)
    ended_well(second)
    [study] = stored(database)
    assert study.study_name.endswith(f"@{this_machine().kind}")
    hosts = {trial.user_attrs["coordinator"]["host"] for trial in study.trials}
    assert hosts == {"node1", "node2"}
    best = read_best_config(file_of_kind(Path("best_config.yaml"), this_machine().kind))
    assert best.config.batch_size == 32
    assert not Path("best_config.yaml").exists()
    # Nothing was measured on one machine that was being measured on the other.
    search = [t for t in study.trials if t.user_attrs["phase"] == "search"]
    for one in search:
        for other in search:
            if one.user_attrs["config"] == other.user_attrs["config"] and one is not other:
                assert (
                    one.datetime_complete <= other.datetime_start
                    or other.datetime_complete <= one.datetime_start
                )

    # Both confirmed it: a third machine takes it as it is.
    assert "nothing is measured again" in ended_well(start("node3"))
    assert len(trials_of(database)) == len(study.trials)

    core = str(min(os.sched_getaffinity(0)))
    if len(os.sched_getaffinity(0)) > 1:
        ended_well(start("small", prefix=("taskset", "-c", core)))
        assert len(stored(database)) == 2
        assert len(list(Path("best_config.d").glob("*.yaml"))) == 2
        for prefix in ((), ("taskset", "-c", core)):
            command = (*prefix, sys.executable, "-c", OWN_SETTINGS)
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            assert found.stdout == "own\n"
    table = subprocess.run(
        (sys.executable, "-m", "autotune", "show", "--all", "--storage", database.url),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for host in hosts:
        assert host in table


@pytest.mark.long
def test_a_machine_that_dies_costs_one_trial(start, database):
    first = start("node1")
    second = start("node2")
    assert wait_until(lambda: len(trials_of(database, "node2")) >= 2, 60)
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
    ended_well(first)
    dead = [t for t in trials_of(database, "node2") if not t.state.is_finished()]
    assert len(dead) <= 1
    # It is seen at once where it ran, and elsewhere by its silence.
    ended_well(start("node2"))
    assert all(t.state.is_finished() for t in trials_of(database, "node2"))


@pytest.mark.long
def test_a_server_that_is_restarted_is_waited_for(start, database):
    process = start("node1")
    assert wait_until(lambda: len(trials_of(database)) >= 2, 60)
    database.restart()
    ended_well(process)
    assert all(trial.state.is_finished() for trial in trials_of(database))


def test_a_database_on_a_server_that_is_not_there_is_one_line(start):
    began_s = time.monotonic()
    process = start("node1", "--storage", "postgresql://nobody@127.0.0.1:1/nothing")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "storage postgresql+psycopg://nobody@127.0.0.1:1/nothing: cannot be opened: " in output
    assert "Traceback" not in output
    assert time.monotonic() - began_s < 30
