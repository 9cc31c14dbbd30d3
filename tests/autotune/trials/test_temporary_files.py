"""The temporary files of trials are in a directory of the run's own, and go with it."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.ipc.private_directory import PrivateDirectory
from autotune.measurement import StartMode
from autotune.trials.runner import open_runner

from ..commands import begin_run
from ..conftest import processes_of, wait_until

CONFIG = ThroughputConfig(batch_size=4)
BLOCK = BlockRequest(min_s=0.05)
# A directory that may not be written to is among what is left.
BEFORE = (
    "import tempfile; made = tempfile.mkdtemp(); os.mkdir(made + '/fixed'); "
    "open(made + '/fixed/file', 'w').close(); os.chmod(made + '/fixed', 0o500)"
)
STEP = "assert os.path.isdir(made) and tempfile.mkstemp(dir=os.environ['TMPDIR'])"


@pytest.fixture
def temporary(monkeypatch):
    """A directory for temporary files with a short path."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
        set_temporary(monkeypatch, directory)
        yield Path(directory)


def set_temporary(monkeypatch, directory):
    monkeypatch.setenv("TMPDIR", str(directory))
    # Python has looked already.
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.parametrize("mode", [StartMode.FORK, StartMode.FRESH])
def test_temporary_files_of_trials_go_with_the_run(light_script, temporary, mode):
    command = light_script(before=BEFORE, step=STEP)
    with open_runner(command, start_mode=None, start_deadline_s=60) as runner:
        for _ in range(2):
            with runner.start(CONFIG, mode) as trial:
                assert trial.measure(BLOCK, deadline_s=10).blocks
        [directory] = temporary.iterdir()
        assert list((directory / "tmp").iterdir())
    assert not list(temporary.iterdir())


def test_a_deep_temporary_directory_is_used_through_a_short_path(
    light_script, monkeypatch, tmp_path
):
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    set_temporary(monkeypatch, deep)
    # A path that a socket cannot have below the user's own directory.
    step = """
        import socket
        if taken == 0:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.path.join(tempfile.mkdtemp(), "a-socket-of-some-library"))
    """
    with open_runner(
        light_script(before="import tempfile", step=step), start_mode=None, start_deadline_s=60
    ) as runner:
        with runner.start(CONFIG, StartMode.FORK) as trial:
            assert trial.measure(BLOCK, deadline_s=10).blocks
        [directory] = deep.iterdir()
        assert list(directory.iterdir())
    assert not list(deep.iterdir())


def test_the_target_of_a_link_is_left_as_it_is(light_script, temporary, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("mine")
    data.chmod(0o500)
    before = f"import tempfile; made = tempfile.mkdtemp(); os.symlink({str(data)!r}, made + '/l')"
    with open_runner(light_script(before=before), start_mode=None, start_deadline_s=60) as runner:
        runner.start(CONFIG, StartMode.FORK).close()
    assert not list(temporary.iterdir())
    assert (data / "file").read_text() == "mine"
    assert data.stat().st_mode & 0o777 == 0o500


def test_temporary_files_go_when_the_coordinator_is_killed(light_script, temporary):
    command = light_script(before=BEFORE, step=STEP)
    code = (
        "import os, signal\n"
        "from autotune.config import ThroughputConfig\n"
        "from autotune.measurement import StartMode\n"
        "from autotune.trials.runner import open_runner\n"
        f"with open_runner({command!r}, start_mode=None, start_deadline_s=60) as runner:\n"
        "    trial = runner.start(ThroughputConfig(batch_size=4), StartMode.FORK)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert wait_until(lambda: not list(temporary.iterdir()), 15.0)
    assert not processes_of(command[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_temporary_files_go_when_a_run_is_interrupted(study, temporary, number):
    run = begin_run(study(script={"before": BEFORE}), 2)
    assert list(temporary.glob("autotune-*/tmp/*"))
    run.send_signal(number)
    run.communicate(timeout=10)
    assert wait_until(lambda: not list(temporary.iterdir()), 15.0)


def test_directories_of_torchrun_go_with_the_run(light_script, temporary):
    join = "import torch.distributed; torch.distributed.init_process_group('gloo')"
    command = light_script(before=join)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", command[1])
    with open_runner(torchrun, start_mode=None, start_deadline_s=60) as runner:
        with runner.start_default() as trial:
            assert trial.measure(BLOCK, deadline_s=10).blocks
        assert list(temporary.glob("autotune-*/tmp/torchelastic_*"))
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("depth", [0, 20])
def test_paths_leave_room_for_the_sockets_of_libraries(monkeypatch, tmp_path, depth):
    parent = Path("/tmp") if depth == 0 else tmp_path / ("deep" * depth)
    parent.mkdir(exist_ok=True)
    set_temporary(monkeypatch, parent)
    directory = PrivateDirectory()
    try:
        socket = directory.temporary / "torch-shm-dir-xxxxxx" / "manager.sock"
        assert len(os.fsencode(socket)) <= 107
        assert directory.temporary.resolve().is_relative_to(parent)
    finally:
        directory.remove()
    assert not any(place.exists() for place in directory.places)
