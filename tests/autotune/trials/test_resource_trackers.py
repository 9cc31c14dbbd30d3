"""Named semaphores and shared memory of trials are unlinked, however these end."""

import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode
from autotune.trials.trial import TrialFailedError

from ..conftest import processes_of, wait_until

WORKERS = ThroughputConfig(batch_size=4, num_workers=1)
CONFIG = ThroughputConfig(batch_size=4)
BLOCK = BlockRequest(min_s=0.05)


@pytest.fixture
def prefix():
    """What the names of this test's semaphores begin with."""
    found = f"/mp-{secrets.token_hex(4)}"
    yield found
    # For whoever runs the next test, should this one have failed.
    for path in left_in_shared_memory(found):
        path.unlink()


def left_in_shared_memory(prefix):
    return list(Path("/dev/shm").glob(f"*{prefix[1:]}*"))


def starting(method, prefix):
    """Code that has workers started in some way, with names that can be told."""
    return (
        f"import multiprocessing as mp; mp.set_start_method('{method}', force=True); "
        f"mp.current_process()._config['semprefix'] = '{prefix}'"
    )


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        ("spawn", StartMode.FORK),
        ("spawn", StartMode.FRESH),
        ("forkserver", StartMode.FORK),
    ],
)
def test_semaphores_of_started_workers_go_with_their_trial(
    script, start_runner, prefix, method, mode
):
    command = script(before=starting(method, prefix))
    runner = start_runner(command)
    with runner.start(WORKERS, mode) as trial:
        trial.measure(BLOCK, deadline_s=60)
        assert left_in_shared_memory(prefix)
    assert not left_in_shared_memory(prefix)
    runner.close()
    assert not processes_of(command[1])


def test_semaphores_go_when_a_worker_hangs(script, start_runner, prefix):
    command = script(before=starting("spawn", prefix), item="time.sleep(3600)")
    with pytest.raises(TrialFailedError) as caught:
        # Its first batch is a part of the start.
        start_runner(command, start_deadline_s=8.0).start(WORKERS, StartMode.FORK)
    assert "it hung at train it.py:" in str(caught.value)
    assert "resource_tracker" not in caught.value.failure.output
    assert not left_in_shared_memory(prefix)


def test_semaphores_go_where_the_script_has_no_main_guard(tmp_path, start_runner, prefix):
    path = tmp_path / "unguarded.py"
    path.write_text(
        "import torch, autotune\n"
        f"{starting('spawn', prefix)}\n"
        "data = torch.utils.data.TensorDataset(torch.zeros(400, 1))\n"
        "default = autotune.ThroughputConfig(batch_size=4)\n"
        "config = autotune.load_config(None, default=default)\n"
        "for batch in autotune.steps(config.dataloader(data)):\n"
        "    pass\n"
    )
    with pytest.raises(TrialFailedError, match="has no `if __name__ == ") as caught:
        start_runner((sys.executable, str(path))).start(WORKERS, StartMode.FORK).measure(
            BLOCK, deadline_s=60
        )
    assert caught.value.failure.setting == "num_workers"
    assert not left_in_shared_memory(prefix)


SEGMENT = (
    "from multiprocessing.shared_memory import SharedMemory; "
    "segment = SharedMemory({name!r}, create=True, size=16)"
)


def test_segments_that_the_host_made_outlive_its_trials_and_not_itself(
    light_script, start_runner, prefix
):
    runner = start_runner(light_script(before=SEGMENT.format(name=prefix)))
    for _ in range(2):
        with runner.start(CONFIG, StartMode.FORK) as trial:
            trial.measure(BLOCK, deadline_s=10)
        assert left_in_shared_memory(prefix)
    runner.close()
    assert not left_in_shared_memory(prefix)


def test_segments_go_when_the_coordinator_is_killed(light_script, tmp_path, prefix):
    make = SEGMENT.format(name=prefix)
    command = light_script(step=f"if taken == 0: {make}; time.sleep(0.01)")
    coordinator = tmp_path / "coordinator.py"
    coordinator.write_text(
        "import os, signal\n"
        "from autotune.blocks import BlockRequest\n"
        "from autotune.config import ThroughputConfig\n"
        "from autotune.measurement import StartMode\n"
        "from autotune.trials.runner import open_runner\n"
        f"with open_runner({command!r}, start_mode=None, start_deadline_s=60) as runner:\n"
        "    trial = runner.start(ThroughputConfig(batch_size=4), StartMode.FORK)\n"
        "    trial.measure(BlockRequest(min_s=0.05), deadline_s=10)\n"
        f"    assert os.path.exists('/dev/shm{prefix}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, str(coordinator)], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert wait_until(lambda: not left_in_shared_memory(prefix), 3.0)
    assert wait_until(lambda: not processes_of(command[1]), 3.0)
