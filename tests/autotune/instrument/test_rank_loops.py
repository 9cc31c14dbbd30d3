"""Several ranks take their steps together, are told apart, and fail together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from autotune.blocks import BlockMode, BlockRequest
from autotune.measurement import FailureCause, StartMode
from autotune.trials.trial import TrialFailedError

from ..commands import autotune_run
from ..conftest import NO_DYNAMO, processes_of, wait_until

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
# Rank 1's batches take eight times as long as rank 0's.
SCRIPT = (
    f"""
import os, sys, time
import torch
{NO_DYNAMO}
import torch.distributed as dist
"""
    + """
import autotune

RANK = int(os.environ["RANK"])

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep({item_s} * (8 if RANK == 1 else 1))
        return torch.full((4,), float(index))

def train():
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    config = autotune.load_config(
        "best_config.yaml",
        default=autotune.ThroughputConfig(batch_size=4, num_threads=1),
        effective_batch_size=16,
    )
    print("effective", config.effective_batch_size, flush=True)
    sampler = torch.utils.data.DistributedSampler(Data())
    loader = config.dataloader(Data(), sampler=sampler)
    number = 0
    for epoch in range({epochs}):
        for batch in autotune.steps(loader):
            number += 1
            {step}
            model(batch).sum().backward()
            if number % config.gradient_accumulation_steps == 0:
                optimizer.step()
                optimizer.zero_grad()

if __name__ == "__main__":
    train()
    # gloo's threads may abort a process that ends without this, or while a model holds the group.
    dist.destroy_process_group()
"""
)
SETTLED = BlockRequest(min_s=0.2, multiple_of=2, settle_s=0.3)


@pytest.fixture
def ddp(tmp_path, monkeypatch):
    """Writes a script of two ranks; gives its path."""
    monkeypatch.chdir(tmp_path)

    def write(*, step="pass", item_s=0.0001, epochs=10**6):
        path = tmp_path / "train_ddp.py"
        path.write_text(textwrap.dedent(SCRIPT).format(step=step, item_s=item_s, epochs=epochs))
        return str(path)

    return write


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def on_one_machine(script):
    return (*TORCHRUN, "--standalone", "--nproc-per-node", "2", script)


def on_two_machines(script, node, port):
    """What is started on each of two machines; both are this one.

    Who is asked for a free port may find it taken later: such tests run alone.
    """
    where = ("--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1")
    return (*TORCHRUN, *where, "--master-addr", "127.0.0.1", "--master-port", str(port), script)


@pytest.fixture
def other_machine():
    """Starts what runs on a machine from which no coordinator can be reached, and ends it."""
    started = []

    def start(command):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AUTOTUNE")}
        done = subprocess.PIPE
        started.append(
            subprocess.Popen(
                command, env=environment, stdout=done, stderr=subprocess.STDOUT, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(process.pid).children(recursive=True):
                one.kill()
        process.kill()
        # Shown where the test fails.
        print(process.communicate()[0])


def test_the_samples_of_all_ranks_count(ddp, start_runner):
    runner = start_runner(on_one_machine(ddp(item_s=0.001)))
    with runner.start_default() as trial:
        assert trial.config.num_ranks == trial.config.ranks_per_node == 2
        # 16 samples of an optimizer step, on two ranks of four each.
        assert trial.config.gradient_accumulation_steps == 2
        (block,) = trial.measure(SETTLED, deadline_s=60).blocks
        assert block.num_samples == 2 * 4 * block.num_steps
        assert block.num_updates == block.num_steps / 2
        slow, quick = block.ranks
        assert (slow.rank, quick.rank) == (1, 0)
        # It waits for its loader, and the other rank for it.
        assert slow.wait_s > 0.5 * block.duration_s > quick.wait_s
        assert block.wait_s == slow.wait_s
        alone = BlockRequest(mode=BlockMode.COMPUTE, min_s=0.2, multiple_of=2)
        (block,) = trial.measure(alone, deadline_s=60).blocks
        assert block.wait_s < 0.2 * block.duration_s
        assert all(use.wait_s < 0.2 * use.duration_s for use in block.ranks)
        loading = BlockRequest(mode=BlockMode.LOAD, min_s=0.2)
        (block,) = trial.measure(loading, deadline_s=60).blocks
        assert block.num_samples == 2 * 4 * block.num_steps
        # Both take as many batches, which takes the slow rank 32 ms for each.
        assert block.duration_s > 0.03 * block.num_steps
        assert trial.begin_epoch(limit_s=0.1, deadline_s=60) > 0.03
        # They go on together.
        assert trial.measure(BlockRequest(min_s=0.1), deadline_s=60).blocks


def test_an_evaluation_of_one_rank_is_not_counted(ddp, start_runner):
    # The other one waits for it, in its step.
    evaluate = "\n            if RANK == 0 and number % 5 == 0: list(autotune.steps(held_out))"
    script = ddp(step=evaluate)
    path = Path(script)
    held_out = "held_out = Slow()\n    number = 0"
    slow = (
        "class Slow:\n    def __iter__(self):\n        time.sleep(0.2)\n        yield 0\n\n"
        'if __name__ == "__main__":'
    )
    text = path.read_text().replace("number = 0", held_out)
    path.write_text(text.replace('if __name__ == "__main__":', slow))
    with start_runner(on_one_machine(script)).start_default() as trial:
        trial.measure(SETTLED, deadline_s=60)
        (block,) = trial.measure(BlockRequest(min_s=0.2, multiple_of=10), deadline_s=60).blocks
        # Two evaluations or more, of 0.2 s each, and steps of a few milliseconds.
        assert block.duration_s < 0.02 * block.num_steps


def test_updates_of_many_slow_steps_are_cut_short(ddp, start_runner):
    script = ddp(step="time.sleep(0.2)")
    with start_runner(on_one_machine(script)).start_default() as trial:
        request = BlockRequest(min_s=0.3, multiple_of=100, cut_s=1.0, settle_s=0.5)
        (block,) = trial.measure(request, deadline_s=15).blocks
        assert 2 <= block.num_steps < 20


def test_batches_that_are_too_large_for_all_ranks_together_are_refused(ddp):
    done = autotune_run("--axis", "batch_size=4,16", "--", *on_one_machine(ddp()))
    assert done.returncode == 2
    assert (
        "axis batch_size: must hold divisors of 8, which is each of 2 ranks' share of the "
        "effective batch size 16, and 16 is none"
    ) in done.stderr


def test_a_rank_that_fails_is_named(ddp, start_runner):
    step = "assert number < 20 or RANK == 0, 'no such picture'"
    runner = start_runner(on_one_machine(ddp(step=step)))
    with pytest.raises(TrialFailedError) as caught, runner.start_default() as trial:
        for _ in range(20):
            trial.measure(SETTLED, deadline_s=60)
    assert caught.value.failure.cause is FailureCause.CRASHED
    assert caught.value.failure.message == "rank 1: AssertionError: no such picture"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_trial_and_is_named(ddp, start_runner, rank):
    script = ddp()
    with start_runner(on_one_machine(script)).start_default() as trial:
        trial.measure(SETTLED, deadline_s=60)
        for process in processes_of(script):
            if process.environ().get("RANK") == str(rank):
                process.send_signal(signal.SIGKILL)
        with pytest.raises(TrialFailedError) as caught:
            trial.measure(SETTLED, deadline_s=60)
    assert caught.value.failure.cause is FailureCause.KILLED
    assert wait_until(lambda: not processes_of(script))


def test_ranks_whose_loops_end_say_so_together(ddp, start_runner):
    script = ddp(step="\n            if number == 40: sys.exit()")
    with start_runner(on_one_machine(script)).start_default() as trial:
        sample = trial.measure(BlockRequest(min_s=30.0, settle_s=0.01), deadline_s=60)
        # After the first update, which told that this is the training.
        assert sample.life_steps == 38
        (block,) = sample.blocks
        assert block.num_samples == 8 * block.num_steps
        assert len(block.ranks) == 2


@pytest.mark.alone
def test_a_rank_on_another_machine_follows_the_one_that_is_reached(
    ddp, start_runner, other_machine
):
    script, port = ddp(item_s=0.001), free_port()
    runner = start_runner(on_two_machines(script, 0, port))
    far = other_machine(on_two_machines(script, 1, port))
    with runner.start_default() as trial:
        assert (trial.config.num_ranks, trial.config.ranks_per_node) == (2, 1)
        (block,) = trial.measure(SETTLED, deadline_s=60).blocks
        assert block.num_samples == 2 * 4 * block.num_steps
        assert block.ranks[0].rank == 1
        ranks = [p for p in processes_of(script) if p.environ().get("RANK") == "1"]
        (loose,) = [p for p in ranks if "torch.distributed.run" not in p.cmdline()]
        loose.kill()
        with pytest.raises(TrialFailedError) as caught:
            trial.measure(SETTLED, deadline_s=60)
    assert caught.value.failure.cause is FailureCause.KILLED
    assert "another rank of the job is gone" in caught.value.failure.message
    assert far.wait(60) != 0
    # It costs one trial.
    other_machine(on_two_machines(script, 1, port))
    with runner.start_default() as trial:
        assert trial.measure(SETTLED, deadline_s=60).blocks
    assert wait_until(lambda: not processes_of(script))


@pytest.mark.alone
def test_a_training_on_two_machines_begins_when_all_ranks_are_there(ddp, other_machine):
    script, port = ddp(epochs=1), free_port()
    both = [other_machine(on_two_machines(script, node, port)) for node in (0, 1)]
    for process in both:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert "effective 16" in output


@pytest.mark.alone
def test_two_coordinators_of_one_job_are_told_so(ddp, start_runner, tmp_path):
    script, port = ddp(), free_port()
    first = start_runner(on_two_machines(script, 0, port))
    command = ("doctor", "--", *on_two_machines(script, 1, port))
    second = subprocess.Popen(
        [sys.executable, "-m", "autotune", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with pytest.raises(TrialFailedError, match="started by more than one `autotune run`"):
        first.start_default()
    _, told = second.communicate(timeout=60)
    assert second.returncode == 1
    assert b"start it once, around what starts them all" in told


def test_ranks_without_a_job_are_refused(light_script, start_runner, tmp_path):
    path = tmp_path / "two.sh"
    command = light_script()
    ranks = " & ".join(f"RANK={rank} WORLD_SIZE=2 '{command[0]}' '{command[1]}'" for rank in (0, 1))
    path.write_text(f"{ranks} & wait\n")
    with pytest.raises(TrialFailedError) as caught:
        start_runner(("/bin/sh", str(path))).start_default()
    assert caught.value.failure.cause is FailureCause.RANKS_UNCLEAR
    assert "2 ranks train without torch.distributed" in caught.value.failure.message


def test_the_number_of_ranks_is_an_axis(ddp, start_runner):
    # One rank is what the command says.
    script = ddp()
    command = (*TORCHRUN, "--standalone", "--nproc-per-node=1", script)
    runner = start_runner(command)
    with runner.start_default() as trial:
        baseline = trial.config
        assert (baseline.num_ranks, baseline.gradient_accumulation_steps) == (1, 4)
        (block,) = trial.measure(SETTLED, deadline_s=60).blocks
        assert not block.ranks
    two = autotune_space(baseline).changed(baseline, ranks_per_node=2)
    assert (two.num_ranks, two.gradient_accumulation_steps) == (2, 2)
    with runner.start(two, StartMode.FRESH) as trial:
        (block,) = trial.measure(SETTLED, deadline_s=60).blocks
        assert len(block.ranks) == 2
        assert block.num_samples == 2 * 4 * block.num_steps


def autotune_space(baseline):
    from autotune.space import Space

    return Space(axes={"ranks_per_node": (1, 2)}, effective_batch_size=16)


def test_an_axis_of_ranks_needs_torchrun(study):
    done = autotune_run(*study(), "--axis", "ranks_per_node=1,2")
    assert done.returncode == 2
    assert "ranks_per_node: the command must start its ranks with torchrun" in done.stderr
