"""Small training scripts, run for real."""

import contextlib
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import yaml

from autotune.ipc.channel import Listener
from autotune.system.counters import process_cpu_s
from autotune.trials.process_groups import ProcessGroups
from autotune.trials.runner import Runner

# The first optimizer imports all of dynamo, which takes longer than the rest of a test.
NO_DYNAMO = """
dynamo = sys.modules["torch._dynamo"] = type(sys)("torch._dynamo")
dynamo.disable = lambda function, *_, **__: function
dynamo.graph_break = lambda *_, **__: None
dynamo.utils = type(sys)("torch._dynamo.utils")
dynamo.utils.get_optimize_ddp_mode = lambda: "ddp_optimizer"
dynamo.trace_rules = type(sys)("torch._dynamo.trace_rules")
dynamo.trace_rules.clear_lru_cache = lambda: None
"""

SCRIPT = (
    f"""
import sys, time, os
import torch
import autotune
{NO_DYNAMO}
"""
    + """

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return {length}
    def __getitem__(self, index):
        {item}
        return torch.tensor([float(index)])

def tokens(batch):
    return 10 * len(batch)

def main():
    default = autotune.ThroughputConfig(batch_size=4)
    data = Data()
    {before}
    config = autotune.load_config("best_config.yaml", default=default{load})
    loader = config.dataloader(data, drop_last=True)
    taken = 0
    for epoch in range({epochs}):
        for batch in autotune.steps(loader{units}):
            {step}
            taken += 1
    print("epilogue", config.batch_size, taken)
    open("epilogue", "w").close()

if __name__ == "__main__":
    main()
"""
)


# The same without torch: starts ten times sooner, for whatever does not depend on it.
LIGHT_SCRIPT = """
import os, sys, time
import autotune

class Loader:
    def __init__(self, batch_size, num_workers):
        self.batch_size = batch_size
        self.num_workers = num_workers
    def __len__(self):
        return {length}
    def __iter__(self):
        for _ in range(len(self)):
            {item}
            yield [0.0] * self.batch_size

def main():
    default = autotune.ThroughputConfig(batch_size=4)
    {before}
    config = autotune.load_config("best_config.yaml", default=default{load})
    def tokens(batch):
        return 10 * config.batch_size
    taken = 0
    for epoch in range({epochs}):
        for batch in autotune.steps(Loader(config.batch_size, config.num_workers){units}):
            {step}
            taken += 1
    print("epilogue", config.batch_size, taken)
    open("epilogue", "w").close()

if __name__ == "__main__":
    main()
"""


# Short blocks: these tests look at what happens, not at how fast anything is.
QUICK = {
    "name": "quick",
    # With the collector named, the space does not depend on what loading costs here.
    "axes": {"batch_size": [2, 4, 8], "num_workers": [0], "gc": ["default"]},
    "block_s": 0.05,
    "max_blocks": 2,
    "confirm_s": 0.3,
    "confirm_rounds": 1,
    "start_deadline_s": 30,
    # Far more than they take, also where other processes leave them a quarter of the machine.
    "budget": "100s",
    # What these tests look at does not depend on it, and it visits everything.
    "sampler": "grid",
    # Whatever else the machine does while the tests run.
    "allow_busy": True,
}
# A step that takes its time whatever the batch: the largest batch is by far the fastest.
# Joins a job of two ranks, at a port that is asked for.
JOIN = (
    "import torch.distributed; torch.distributed.init_process_group('gloo', rank="
    "int(os.environ['RANK']), world_size=2, init_method='tcp://127.0.0.1:{port}')"
)
FIXED_STEP = "time.sleep(0.01)"


def script_text(
    template,
    *,
    item="time.sleep(0.0005)",
    step="time.sleep(0.001)",
    before="pass",
    length=4000,
    epochs=1,
    load="",
    units="",
):
    """A training script of which some parts are given."""
    return template.format(
        item=item,
        step=textwrap.indent(textwrap.dedent(step), " " * 12).strip(),
        before=before,
        length=length,
        epochs=epochs,
        load=load,
        units=units,
    )


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Writes a training script into an empty working directory; gives its command."""
    monkeypatch.chdir(tmp_path)
    return lambda **parts: _write(tmp_path, script_text(SCRIPT, **parts))


@pytest.fixture
def light_script(tmp_path, monkeypatch):
    """The same for a script that does without torch, and so cannot have loader workers."""
    monkeypatch.chdir(tmp_path)
    return lambda **parts: _write(tmp_path, script_text(LIGHT_SCRIPT, **parts))


@pytest.fixture
def study(light_script):
    """Writes a study of a light script; gives the options that run it."""

    def write(*, script=None, **changes):
        command = light_script(**{"step": FIXED_STEP, **(script or {})})
        data = {**QUICK, "command": list(command), **changes}
        Path("quick.yaml").write_text(yaml.safe_dump(data))
        return ("--study", "quick.yaml")

    return write


@pytest.fixture
def join():
    """What has two ranks join one job, as a line of a script."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return JOIN.format(port=free.getsockname()[1])


@pytest.fixture
def start_runner():
    """Makes runners; ends everything afterwards."""
    with runners() as make:
        yield make


@contextlib.contextmanager
def runners():
    """Gives what makes runners; ends everything afterwards."""
    groups = ProcessGroups()
    opened = []

    def make(command, *, start_mode=None, start_deadline_s=60.0):
        listener = Listener().__enter__()
        runner = Runner(
            tuple(command),
            groups=groups,
            listener=listener,
            start_mode=start_mode,
            start_deadline_s=start_deadline_s,
        )
        opened.extend((listener, runner))
        return runner

    yield make
    for item in reversed(opened):
        item.__exit__(None, None, None)
    groups.close()


@pytest.fixture
def hogs():
    """Starts processes that each keep a core busy; ends them afterwards."""
    started = []

    def start(number):
        new = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
            for _ in range(number)
        ]
        started.extend(new)
        for hog in new:
            assert wait_until(lambda pid=hog.pid: process_cpu_s(pid) > 0.05)
        return new

    yield start
    for hog in started:
        stop(hog)


def stop(process):
    """Kill a child and wait for its end."""
    process.kill()
    process.wait()


def _write(directory, text):
    path = directory / "train it.py"
    path.write_text(text)
    return (sys.executable, str(path))


def processes_of(path):
    """Live processes that have `path` in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            str(path) in part for part in command
        ):
            found.append(process)
    return found


def wait_until(condition, limit_s=10.0):
    """Wait for a condition; says whether it came true."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())
