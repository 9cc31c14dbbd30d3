"""Ranks that are started in different ways are found, told apart, and waited for."""

import os
import sys
import time

import pytest

from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.instrument.ranks import Place, find_place
from autotune.measurement import FailureCause, StartMode
from autotune.trials.trial import TrialFailedError

from ..commands import autotune_run
from ..conftest import FIXED_STEP, processes_of

CONFIG = ThroughputConfig(batch_size=8)
BLOCK = BlockRequest(min_s=0.05)
# Starts one process for each argument after the script, with these variables added, and waits.
LAUNCHER = """
import os, subprocess, sys
started = [
    subprocess.Popen(
        [sys.executable, sys.argv[1]],
        env={**os.environ, **dict(pair.split("=") for pair in variables.split(",") if pair)},
    )
    for variables in sys.argv[2:]
]
sys.exit(max(process.wait() for process in started))
"""
RANKS = ("RANK=0,WORLD_SIZE=2", "RANK=1,WORLD_SIZE=2")


def launched(tmp_path, command, *variables):
    """A command that starts several processes of a script."""
    path = tmp_path / "launcher.py"
    path.write_text(LAUNCHER)
    return (sys.executable, str(path), command[1], *variables)


# The ranks of torch.multiprocessing.spawn have no variables that tell which they are.
SPAWNED = """
import os
import torch
import torch.distributed as dist
import autotune

def work(rank, method):
    if method:
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    default = autotune.ThroughputConfig(batch_size=4)
    config = autotune.load_config(None, default=default)
    if not method:
        # As the first collective call does, whose partners never come.
        import time
        time.sleep(3600)
    total = torch.zeros(1)
    for batch in autotune.steps([[0.0]] * 100, units=len):
        dist.all_reduce(total)

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, args=({method!r},), nprocs=2)
"""


def spawned(tmp_path, method):
    path = tmp_path / "spawned.py"
    path.write_text(SPAWNED.replace("{method!r}", repr(method)))
    return (sys.executable, str(path))


def test_ranks_of_mp_spawn_are_measured_together(tmp_path, start_runner):
    runner = start_runner(spawned(tmp_path, f"file://{tmp_path}/meeting"))
    with runner.start_default() as trial:
        assert runner.introduction.rank == 0
        assert runner.introduction.world_size == 2
        assert runner.introduction.fork_obstacle == "several ranks start together"
        assert trial.measure(BLOCK, deadline_s=30).blocks
    assert not processes_of(tmp_path / "spawned.py")


def test_ranks_that_cannot_be_told_apart_are_told_so_at_once(tmp_path, start_runner):
    runner = start_runner(spawned(tmp_path, ""))
    with pytest.raises(TrialFailedError) as caught:
        runner.start_default()
    assert caught.value.failure.cause is FailureCause.RANKS_UNCLEAR
    assert caught.value.failure.message == (
        "two processes of the command call autotune.load_config, and both are rank 0: call "
        "torch.distributed.init_process_group before load_config, or start them with torchrun"
    )
    assert not processes_of(tmp_path / "spawned.py")


def test_two_processes_with_the_same_rank_variable_are_told_so(
    light_script, start_runner, tmp_path
):
    command = launched(tmp_path, light_script(), RANKS[1], RANKS[1])
    with pytest.raises(TrialFailedError, match="both are rank 1"):
        start_runner(command).start(CONFIG, StartMode.FRESH)


def test_a_rank_that_never_comes_is_named_at_the_deadline(light_script, start_runner, tmp_path):
    command = launched(tmp_path, light_script(), RANKS[0])
    runner = start_runner(command, start_deadline_s=3.0)
    with pytest.raises(TrialFailedError) as caught:
        runner.start_default()
    assert caught.value.failure.cause is FailureCause.TIMED_OUT
    assert "rank 1 of 2 did not call autotune.load_config within 3 s" in str(caught.value)
    assert not processes_of(command[2])


def test_a_command_that_ends_without_one_of_its_ranks_is_explained(
    light_script, start_runner, tmp_path
):
    path = tmp_path / "launcher.sh"
    command = light_script()
    # The other rank is left to itself by what started it.
    path.write_text(f"RANK=0 WORLD_SIZE=2 setsid '{command[0]}' '{command[1]}' & sleep 2\n")
    with pytest.raises(TrialFailedError, match="rank 1 of 2 did not call autotune.load_config"):
        start_runner(("/bin/sh", str(path))).start_default()
    assert not processes_of(command[1])


@pytest.mark.long
def test_jobs_of_several_ranks_are_confirmed_one_after_another(study, tmp_path, join):
    axes = {"batch_size": [4, 8], "num_workers": [0], "gc": ["default"]}
    options = study(script={"before": join, "step": FIXED_STEP}, axes=axes)
    command = launched(tmp_path, (sys.executable, str(tmp_path / "train it.py")), *RANKS)
    text = (tmp_path / "quick.yaml").read_text()
    head, _, tail = text.partition("command:\n")
    rest = tail.split("\n", 2)[2]
    quoted = "".join(f"- '{part}'\n" for part in command)
    (tmp_path / "quick.yaml").write_text(f"{head}command:\n{quoted}{rest}")
    done = autotune_run(*options)
    assert done.returncode == 0, done.stderr
    assert (
        "one after another, since jobs of torch.distributed may want the same port" in done.stdout
    )
    assert "each trial starts afresh: several ranks start together" in done.stdout
    assert "crashed" not in done.stdout


def test_the_time_for_everything_bounds_a_start(light_script, start_runner):
    runner = start_runner(light_script(before="time.sleep(3600)"))
    runner.end_s = time.monotonic() + 2.0
    runner.least_patience_s = 1.0
    with pytest.raises(TrialFailedError) as caught:
        runner.start_default()
    assert (
        "did not call autotune.load_config within 2 s, the time that was left of the budget"
        in str(caught.value)
    )
    # What is started when the time is up gets a little time all the same.
    with pytest.raises(TrialFailedError, match="within 1 s, the time that was left"):
        runner.start_default()


def test_the_time_for_everything_bounds_the_way_to_the_loop(light_script, start_runner):
    runner = start_runner(light_script(load=")\n    time.sleep(3600"))
    runner.end_s = time.monotonic() + 2.0
    runner.least_patience_s = 0.5
    with pytest.raises(TrialFailedError, match="did not get to the first batch of its loop"):
        runner.start_default()
    assert time.monotonic() < runner.end_s + 5.0


def test_a_baseline_that_does_not_get_to_its_loop_within_the_budget_ends_the_run(study):
    done = autotune_run(*study(script={"before": "time.sleep(3600)"}, budget="2s"))
    assert done.returncode == 1
    # A start gets ten seconds, however small the budget is.
    assert (
        "error: the command failed: timed out: the command did not call autotune.load_config "
        "within 10 s, the time that was left of the budget; it hung at train it.py:"
    ) in done.stderr


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Place(0, 1, False)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Place(3, 4, True)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, Place(3, 4, True, 2)),
        (
            {
                "SLURM_PROCID": "2",
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_STEP_TASKS_PER_NODE": "3(x2),2",
            },
            Place(2, 8, True, 2),
        ),
        # A batch script has tasks that were never started; a single one is no job.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Place(0, 1, False)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place(0, 1, False)),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            Place(1, 2, True, 2),
        ),
        # torchrun below srun.
        (
            {
                "RANK": "5",
                "WORLD_SIZE": "8",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
            },
            Place(5, 8, True),
        ),
    ],
)
def test_launchers_tell_a_process_its_rank(monkeypatch, variables, place):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "OMPI_", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_place() == place
    assert place.may_span_machines == (place.local_world_size == 2 and place.world_size > 2)
