"""Scripts with a loop that must be found, of which a test gives the lines that matter."""

import sys
import textwrap

import pytest

from autotune.config import ThroughputConfig
from autotune.measurement import StartMode

from ..conftest import NO_DYNAMO, runners

CONFIG = ThroughputConfig(batch_size=4)
HEAD = (
    f"""
import itertools, os, sys, time, types
import torch
import autotune
{NO_DYNAMO}
"""
    + """

class Rows(torch.utils.data.Dataset):
    def __init__(self, length, name="train"):
        self.length, self.name = length, name
    def __len__(self):
        return self.length
    def __getitem__(self, index):
        return torch.full((3,), float(index))

def cycle(loader):
    while True:
        yield from loader

model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
config = autotune.load_config(None, default=autotune.ThroughputConfig(batch_size=4))

def train_step(x):
    model(x).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.002)

loader = config.dataloader(Rows(40), shuffle=True)
other = config.dataloader(Rows(12, "other"))
"""
)
TAIL = """
open("afterwards", "w").close()
torch.save(model.state_dict(), "model.pt")
print("afterwards", flush=True)
"""


# Goes on with the lines of whatever test a trial is forked for.
SHARED = """
with open(f"{os.path.dirname(__file__)}/directory") as place:
    os.chdir(place.read())
with open("train.py") as lines:
    exec(compile(lines.read(), "train.py", "exec"))
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The directory and the runner of a script that all tests share: it imports torch once."""
    directory = tmp_path_factory.mktemp("shared")
    path = directory / "train.py"
    path.write_text(HEAD + SHARED)
    with runners() as start_runner:
        yield directory, start_runner((sys.executable, str(path)))


@pytest.fixture
def start(tmp_path, monkeypatch, start_runner, shared):
    """Starts a trial of a script made of the head above, some lines, and the tail.

    Unless it has a head of its own, or starts afresh, it is forked from what all tests share.
    """
    monkeypatch.chdir(tmp_path)
    directory, shared_runner = shared
    started = []

    def make(lines, *, config=CONFIG, mode=StartMode.FORK, head=HEAD):
        path = tmp_path / "train.py"
        lines = textwrap.dedent(lines) + TAIL
        if mode is StartMode.FORK and head == HEAD:
            path.write_text(lines)
            (directory / "directory").write_text(str(tmp_path))
            trial = shared_runner.start(config, mode)
        else:
            path.write_text(head + lines)
            trial = start_runner((sys.executable, str(path))).start(config, mode)
        started.append(trial)
        return trial

    yield make
    for trial in started:
        trial.close()
    shared_runner.removed_files.clear()
