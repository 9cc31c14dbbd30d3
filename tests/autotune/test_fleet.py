"""`autotune fleet`: runs on many machines, started by submitit or Ray."""

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune.cli import fleet, run

from . import postgres
from .commands import autotune_here
from .conftest import processes_of, wait_until
from .runs.test_many_machines import AXES

needs_server = pytest.mark.skipif(
    postgres.program("initdb") is None and "CI" not in os.environ,
    reason="PostgreSQL's server is not installed",
)


def options_of(study, *options):
    study(sampler="auto", axes=AXES)
    return ("--study", "quick.yaml", *options)


def run_fleet(*options):
    command = (sys.executable, "-m", "autotune", "fleet", *options)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_several_machines_need_a_server(study):
    options = options_of(study, "--engine", "local", "--storage", "some.db")
    done = autotune_here(*options, command="fleet")
    assert done.returncode == 2
    assert "several machines need a database server" in done.stderr


def test_bad_options_are_told_before_anything_is_started(study):
    url = "postgresql://nobody@127.0.0.1:1/x"
    for options, line in (
        (("--engine", "local", "--option", "partition"), "must look like NAME=VALUE"),
        (("--engine", "local", "--option", "a=b"), "the local engine has no options"),
        (("--engine", "ray", "--option", "a=b"), "Ray has address=HOST:PORT only"),
    ):
        done = autotune_here(*options_of(study, "--storage", url, *options), command="fleet")
        assert done.returncode == 2, done.stderr
        assert line in done.stderr


def test_what_defines_a_study_is_handed_on_as_it_was_given():
    own = {"engine", "machines", "storage", "out", "scheduler_options", "logs", "command"}
    given = {option.name for option in fleet.params} - own
    assert given == {option.name for option in run.params} - {
        *("out", "storage", "fresh", "as_json", "quiet", "command")
    }


@pytest.mark.long
@needs_server
def test_a_local_fleet_finds_an_answer(study, tmp_path_factory):
    with postgres.server(tmp_path_factory.mktemp("postgres")) as server:
        options = ("--engine", "local", "--machines", "2", "--storage", server.url)
        done = run_fleet(*options_of(study, *options))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs started by local" in done.stdout
    assert len(re.findall("job .*: done", done.stdout)) == 2
    [written] = Path("best_config.d").glob("*.yaml")
    assert f"written to {written}" in done.stdout
    assert "batch 32" in done.stdout


@needs_server
def test_a_run_that_fails_is_told_with_its_reason(study, tmp_path_factory):
    with postgres.server(tmp_path_factory.mktemp("postgres")) as server:
        options = ("--engine", "local", "--storage", server.url)
        study(script={"before": "raise SystemExit('no such data')"})
        done = run_fleet("--study", "quick.yaml", *options)
    assert done.returncode == 1
    assert "no such data" in done.stdout
    assert "no run came to an answer" in done.stderr


RAY = """
import sys, threading, time
import ray
from ray.cluster_utils import Cluster
cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
)
other = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(other, allow_graceful=False)
print("removed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.mark.long
@needs_server
def test_ray_runs_on_every_node_and_one_may_be_lost(study, tmp_path_factory):
    with (
        postgres.server(tmp_path_factory.mktemp("postgres")) as server,
        subprocess.Popen(
            [sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as cluster,
    ):
        try:
            address = cluster.stdout.readline().strip()
            options = ("--engine", "ray", "--option", f"address={address}")
            command = ("fleet", *options_of(study, *options, "--storage", server.url))
            with subprocess.Popen(
                [sys.executable, "-m", "autotune", *command], stdout=subprocess.PIPE, text=True
            ) as process:
                # The command itself and a run on each node, which has begun to search.
                assert wait_until(lambda: len(processes_of(server.url)) >= 3, 90)
                time.sleep(2)
                cluster.stdin.write("\n")
                cluster.stdin.flush()
                assert cluster.stdout.readline() == "removed\n"
                output = process.stdout.read()
            assert process.returncode == 0, output
            assert "2 runs started by ray" in output
            assert "machine lost" in output
            assert "done" in output
            assert len(list(Path("best_config.d").glob("*.yaml"))) == 1
            assert wait_until(lambda: not processes_of("quick.yaml"), 30)
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                cluster.communicate("\n\n", timeout=20)
            cluster.kill()
