"""Trials of real scripts in real processes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.measurement import FailureCause, StartMode
from autotune.trials.failures import describe_exception, describe_exit
from autotune.trials.process_groups import ProcessGroups
from autotune.trials.trial import TrialFailedError

from ..conftest import processes_of, wait_until

CONFIG = ThroughputConfig(batch_size=4)
BLOCK = BlockRequest(min_s=0.1, settle_s=0.2)


def test_a_fresh_trial_introduces_itself_and_is_measured(script, start_runner):
    runner = start_runner(script(load=", effective_batch_size=8", units=", units=tokens"))
    with runner.start_default() as trial:
        assert 0 < trial.start_up_s <= trial.ready_s
        sample = trial.measure(BLOCK, deadline_s=30)
        root = psutil.Process(runner.introduction.pid)
        assert root.is_running()
    introduction = runner.introduction
    assert introduction.default == ThroughputConfig(batch_size=4, gradient_accumulation_steps=2)
    assert introduction.effective_batch_size == 8
    assert introduction.default_num_threads >= 1
    assert trial.facts.unit == "tokens"
    assert 0.1 < trial.start_up_s < 30
    assert trial.active_s > trial.start_up_s
    assert trial.facts.steps_per_epoch == 1000
    (block,) = sample.blocks
    assert block.num_samples == 4 * block.num_steps
    assert block.num_units == 40 * block.num_steps
    assert 0.1 <= block.duration_s < 5
    assert 0 < block.wait_s < block.duration_s
    assert sample.memory_bytes > 50 * 2**20
    assert sample.devices == ()
    assert not root.is_running()


def test_forked_trials_get_the_configuration_asked_for(script, start_runner):
    runner = start_runner(script(step="print('threads', torch.get_num_threads(), flush=True)"))
    for num_workers, num_threads in ((0, 1), (2, 2), (0, 2)):
        config = ThroughputConfig(batch_size=3, num_workers=num_workers, num_threads=num_threads)
        with runner.start(config, StartMode.FORK) as trial:
            sample = trial.measure(BLOCK, deadline_s=30)
            output = trial._origin.output.read_text()
            processes = [psutil.Process(trial._origin.root_pid)]
            processes += processes[0].children(recursive=True)
        assert trial.mode is StartMode.FORK
        assert sample.blocks[0].num_samples == 3 * sample.blocks[0].num_steps
        assert f"threads {num_threads}\n" in output
        assert len(processes) == 1 + num_workers
        assert wait_until(lambda alive=processes: not any(p.is_running() for p in alive), 2.0)
    assert runner.mode is StartMode.FORK
    assert not Path("epilogue").exists()


@pytest.mark.parametrize(
    ("parts", "cause", "message"),
    [
        ({"step": "raise ValueError('bad\\nnews')"}, FailureCause.CRASHED, "ValueError: bad"),
        ({"step": "raise MemoryError"}, FailureCause.OUT_OF_MEMORY, "MemoryError"),
        ({"step": "sys.exit(3)"}, FailureCause.CRASHED, r"sys.exit\(3\)"),
        ({"step": "os._exit(3)"}, FailureCause.CRASHED, "exit code 3"),
        ({"step": "os.kill(os.getpid(), 9)"}, FailureCause.KILLED, "SIGKILL"),
        ({"step": "os.kill(os.getpid(), 11)"}, FailureCause.CRASHED, "SIGSEGV"),
        ({"length": 0}, FailureCause.NO_DATA, "delivered no batch"),
        ({"step": "time.sleep(60)"}, FailureCause.TIMED_OUT, "within 1 s"),
    ],
)
def test_a_failure_has_a_cause_and_leaves_nothing_running(
    light_script, start_runner, parts, cause, message
):
    command = light_script(**parts)
    runner = start_runner(command)
    for mode in (StartMode.FORK, StartMode.FRESH):
        with pytest.raises(TrialFailedError, match=message) as caught:
            trial = runner.start(CONFIG, mode)
            trial.measure(BLOCK, deadline_s=1)
        assert caught.value.failure.cause is cause
        assert not Path("epilogue").exists()
    runner.close()
    assert wait_until(lambda: not processes_of(command[1]), 2.0)


def test_the_traceback_of_a_failure_is_kept(light_script, start_runner):
    step = """
        if taken == 1:
            raise ValueError("bad news")
    """
    runner = start_runner(light_script(step=step))
    with pytest.raises(TrialFailedError) as caught:
        runner.start(CONFIG, StartMode.FORK).measure(BLOCK, deadline_s=10)
    assert "Traceback" in caught.value.failure.output
    assert "bad news" in caught.value.failure.output


def test_a_host_survives_a_trial_that_fails(light_script, start_runner):
    runner = start_runner(light_script(step="if config.batch_size == 5: os._exit(1)"))
    with pytest.raises(TrialFailedError):
        runner.start(ThroughputConfig(batch_size=5), StartMode.FORK).measure(BLOCK, deadline_s=10)
    with runner.start(ThroughputConfig(batch_size=6), StartMode.FORK) as trial:
        assert trial.measure(BLOCK, deadline_s=10).blocks


def test_a_dead_host_is_replaced(light_script, start_runner):
    runner = start_runner(light_script())
    runner.start(CONFIG, StartMode.FORK).close()
    os.kill(runner._fork_host.process.pid, signal.SIGKILL)
    runner._fork_host.process.wait()
    with pytest.raises(TrialFailedError, match="SIGKILL"):
        runner.start(CONFIG, StartMode.FORK)
    with runner.start(CONFIG, StartMode.FORK) as trial:
        assert trial.measure(BLOCK, deadline_s=10).blocks


def test_where_threads_run_trials_start_afresh_and_say_why(light_script, start_runner):
    before = (
        "import threading; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    runner = start_runner(light_script(before=before))
    with runner.start(CONFIG, StartMode.FORK) as trial:
        assert trial.measure(BLOCK, deadline_s=10).blocks
    assert trial.mode is StartMode.FRESH
    assert re.fullmatch(
        r"1 thread runs when load_config is called: Thread-1 \(sleep\), "
        r"started at train it\.py:\d+ \(start it after load_config\)",
        runner.fresh_reason,
    )


@pytest.mark.parametrize(
    ("code", "cause", "message"),
    [
        ("pass", FailureCause.NEVER_CALLED, "without calling autotune.load_config"),
        ("import no_such_module", FailureCause.CRASHED, "exit code 1"),
        ("import time; time.sleep(60)", FailureCause.TIMED_OUT, "did not call .* within 2 s"),
        (
            "import autotune; autotune.steps([1])",
            FailureCause.CRASHED,
            "exit code 1",
        ),
        (
            "import autotune, time; C = autotune.ThroughputConfig(batch_size=1); "
            "autotune.load_config(None, default=C); time.sleep(60)",
            FailureCause.TIMED_OUT,
            "did not get to the first batch of its loop within 2 s",
        ),
    ],
)
def test_a_command_that_does_not_get_to_its_loop_is_explained(start_runner, code, cause, message):
    runner = start_runner((sys.executable, "-c", code), start_deadline_s=2.0)
    with pytest.raises(TrialFailedError, match=message) as caught:
        runner.start_default()
    assert caught.value.failure.cause is cause


def test_a_program_that_is_not_there_is_bad_input(start_runner):
    with pytest.raises(BadInputError, match="cannot be started"):
        start_runner(("/no/such/program",)).start_default()


def test_a_shell_script_can_be_measured(light_script, start_runner, tmp_path):
    command = light_script()
    shell = tmp_path / "train.sh"
    shell.write_text(f"cd {tmp_path}\nexport X=1\n'{command[0]}' '{command[1]}'\nexit $?\n")
    runner = start_runner(("/bin/sh", str(shell)))
    for mode in (StartMode.FRESH, StartMode.FORK):
        with runner.start(CONFIG, mode) as trial:
            assert trial.measure(BLOCK, deadline_s=10).blocks
    runner.close()
    assert wait_until(lambda: not processes_of(command[1]), 2.0)


def test_nothing_is_left_when_the_coordinator_is_killed(script, tmp_path):
    command = script()
    code = f"""
import os, signal
from autotune.ipc.channel import Listener
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode
from autotune.trials.process_groups import ProcessGroups
from autotune.trials.runner import Runner
with Listener() as listener:
    print(listener.directory, flush=True)
    groups = ProcessGroups()
    groups.remove_at_end(listener.directory)
    runner = Runner({command!r}, groups=groups, listener=listener, start_mode=None,
                    start_deadline_s=60)
    trial = runner.start(ThroughputConfig(batch_size=2, num_workers=2), StartMode.FORK)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], timeout=60, check=False, stdout=subprocess.PIPE, text=True
    )
    assert ended.returncode == -signal.SIGKILL
    assert wait_until(lambda: not processes_of(command[1]), 1.0)
    assert wait_until(lambda: not Path(ended.stdout.strip()).exists(), 1.0)


@pytest.mark.parametrize(
    ("name", "detail", "cause"),
    [
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate",
            FailureCause.OUT_OF_MEMORY,
        ),
        ("OutOfMemoryError", "CUDA out of memory.", FailureCause.OUT_OF_DEVICE_MEMORY),
        ("RuntimeError", "CUDA error: out of memory", FailureCause.OUT_OF_DEVICE_MEMORY),
        (
            "RuntimeError",
            "DataLoader worker (pid 3) is killed by signal: Bus error. It is "
            "possible that dataloader's workers are out of shared memory.",
            FailureCause.OUT_OF_SHARED_MEMORY,
        ),
        (
            "RuntimeError",
            "unable to write to file </torch_12_34_5>: No space left on device (28)",
            FailureCause.OUT_OF_SHARED_MEMORY,
        ),
        ("OSError", "[Errno 28] No space left on device: 'log.txt'", FailureCause.CRASHED),
        ("OSError", "[Errno 24] Too many open files", FailureCause.TOO_MANY_FILES),
        ("RuntimeError", "received 0 items of ancdata", FailureCause.TOO_MANY_FILES),
        ("RuntimeError", "shape mismatch", FailureCause.CRASHED),
        (
            "RuntimeError",
            "DataLoader worker (pid 3) is killed by signal: Killed.",
            FailureCause.KILLED,
        ),
        (
            "RuntimeError",
            "DataLoader worker (pid 3) is killed by signal: Segmentation fault.",
            FailureCause.CRASHED,
        ),
    ],
)
def test_running_out_of_something_is_told_from_other_errors(name, detail, cause):
    assert describe_exception(name, detail, "", oom_killed=False).cause is cause


def test_a_kill_is_the_kernels_where_the_kernel_counted_one():
    for code in (-9, 137):
        assert describe_exit(code, "", oom_killed=True).cause is FailureCause.OUT_OF_MEMORY
        assert describe_exit(code, "", oom_killed=False).cause is FailureCause.KILLED
    worker = "DataLoader worker (pid 3) is killed by signal: Killed."
    failure = describe_exception("RuntimeError", worker, "", oom_killed=True)
    assert failure.cause is FailureCause.OUT_OF_MEMORY


def test_shared_memory_of_killed_processes_is_removed():
    groups = ProcessGroups()
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    groups.add(process.pid)
    segment = Path(f"/dev/shm/torch_{process.pid}_1_0")
    other = segment.with_name(f"torch_{process.pid}9_1_0")
    try:
        segment.write_bytes(b"x")
        other.write_bytes(b"x")
        groups.end(process.pid)
        process.wait()
        groups.forget(process.pid)
        assert not segment.exists()
        assert other.exists()
    finally:
        other.unlink()
        groups.close()


def test_what_is_launched_ahead_serves_the_next_fresh_trials(light_script, start_runner, tmp_path):
    command = light_script(before="open('starts', 'a').write('x')")
    runner = start_runner(command)
    runner.launch_ahead(2)
    assert wait_until(lambda: (tmp_path / "starts").exists())
    eight = ThroughputConfig(batch_size=8)
    with runner.start(CONFIG, StartMode.FRESH) as one, runner.start(eight, StartMode.FRESH) as two:
        for trial, batch_size in ((one, 4), (two, 8)):
            block = trial.measure(BlockRequest(min_s=0.05), deadline_s=30.0).blocks[0]
            assert block.num_samples == batch_size * block.num_steps
        assert (tmp_path / "starts").read_text() == "xx"


def test_what_was_launched_ahead_and_not_needed_is_ended(light_script, start_runner, tmp_path):
    runner = start_runner(light_script())
    runner.launch_ahead(2)
    assert wait_until(lambda: len(processes_of(tmp_path / "train it.py")) == 2)
    runner.close()
    assert not processes_of(tmp_path / "train it.py")
