"""Scripts in the styles of others, which do not call autotune: what a first look makes of each."""

import shutil
import sys
from pathlib import Path

import pytest

from autotune.errors import BadInputError
from autotune.trials.trial import TrialFailedError

SCRIPTS = Path(__file__).parents[3] / "benchmarks" / "untouched"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


@pytest.fixture
def look(tmp_path, monkeypatch, start_runner):
    """Takes a first look at a script, or at source text; gives what is tuned."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SCRIPTS / "data.py", tmp_path)

    def find(script, launcher=(sys.executable,)):
        path = tmp_path / "script.py"
        path.write_text(script if "\n" in script else (SCRIPTS / f"{script}.py").read_text())
        before = sorted(tmp_path.iterdir())
        try:
            return start_runner((*launcher, "script.py")).patch(with_batch_size=False)
        finally:
            left = {path.name for path in set(tmp_path.iterdir()) - set(before)}
            assert left <= {"__pycache__", "out"}

    return find


@pytest.mark.parametrize(
    ("script", "made_by", "ordinal", "first_pass"),
    [
        ("imagenet", "train_loader = DataLoader(", None, 0),
        ("mnist", "train_loader = torch.utils.data.DataLoader(", None, 0),
        ("timm_style", "loader = DataLoader(", None, 0),
        ("notebook", "x: torch.utils.data.DataLoader(", 1, 1),
        ("by_hand", "loader = DataLoader(", None, 0),
        ("gan", "dataloader = torch.utils.data.DataLoader(", None, 0),
    ],
)
def test_the_loader_of_the_training_is_found(look, script, made_by, ordinal, first_pass):
    target = look(script)
    assert made_by in target.calls[0]
    assert (target.ordinal, target.first_pass) == (ordinal, first_pass)
    assert target.framework is None


def test_a_loader_that_accelerate_prepares_is_found(look):
    pytest.importorskip("accelerate")
    target = look("accelerated")
    assert "accelerator.prepare(" in target.calls[0]
    assert target.ordinal == 0


def test_the_loader_of_several_ranks_is_found(look):
    assert "return DataLoader(" in look("ddp", TORCHRUN).calls[0]


@pytest.mark.parametrize(
    ("script", "framework"), [("hf_trainer", "transformers"), ("lightning_trainer", "lightning")]
)
def test_a_framework_is_left_to_its_own_call(look, script, framework):
    pytest.importorskip(framework)
    target = look(script)
    assert target.framework == framework
    assert "Trainer" in str(target)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("nanogpt", "takes its batches from no DataLoader"),
        ("two_loaders", "each step takes from several DataLoaders"),
        (
            "import autotune\nautotune.load_config(None, default=autotune.ThroughputConfig("
            "batch_size=1))\n",
            "calls autotune.load_config by itself: run it without --patch",
        ),
    ],
)
def test_what_cannot_be_tuned_like_this_is_refused_with_what_to_do(look, script, problem):
    with pytest.raises(BadInputError, match=f"--patch cannot tune this command: .*{problem}"):
        look(script)


@pytest.mark.parametrize(
    ("script", "launcher", "message"),
    [
        ("import sys\nsys.exit('no such dataset')\n", (), "no such dataset"),
        ("import torch\nraise ValueError('wrong flag')\n", (), "wrong flag"),
        ("print('nothing of torch')\n", (), "ended without a DataLoader of torch"),
        ("print('nothing')\n", ("-I",), "does not run the start-up hook"),
    ],
)
def test_a_command_that_fails_has_its_own_words(look, script, launcher, message):
    with pytest.raises(TrialFailedError) as failed:
        look(script, (sys.executable, *launcher))
    assert message in failed.value.explain("the command")


def test_a_process_that_only_prepares_is_not_taken_for_the_training(look, tmp_path):
    prepare = "import torch\nfrom torch.utils.data import DataLoader\nlist(DataLoader(range(3)))\n"
    (tmp_path / "prepare.py").write_text(prepare)
    launcher = ("sh", "-c", f"{sys.executable} prepare.py && {sys.executable} $0")
    assert "dataloader = torch.utils.data.DataLoader(" in look("gan", launcher).calls[0]


THREADED = """
import queue, threading, time
import torch

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 400
    def __getitem__(self, index):
        time.sleep(0.005)
        return torch.ones(3)

def background(source):
    waiting = queue.Queue(2)
    def fill():
        for x in source:
            waiting.put(x)
    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield waiting.get()

model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x in background(torch.utils.data.DataLoader(Rows(), batch_size=4)):
    model(x).mean().backward()
    optimizer.step()
    torch.save(model.state_dict(), "last.pt")
"""


def test_what_steps_save_beside_a_thread_that_loads_replaces_nothing(look, tmp_path):
    (tmp_path / "last.pt").write_text("of an earlier training")
    assert "DataLoader(Rows()" in look(THREADED).calls[0]
    assert (tmp_path / "last.pt").read_text() == "of an earlier training"


def test_an_untouched_script_that_takes_long_to_begin_is_not_asked_to_call_anything(
    tmp_path, monkeypatch, start_runner
):
    monkeypatch.chdir(tmp_path)
    slow = (
        "import pathlib\nif not pathlib.Path('seen').exists():\n    pathlib.Path('seen').touch()\n"
    )
    slow += "else:\n    import time\n    time.sleep(3600)\n"
    Path("script.py").write_text(slow + THREADED)
    runner = start_runner((sys.executable, "script.py"))
    runner.patch(with_batch_size=False)
    runner.start_deadline_s = 1.0
    with pytest.raises(TrialFailedError) as caught:
        runner.start_default()
    message = caught.value.failure.message
    assert message.startswith("the command did not begin to train within 1 s")
    assert "load_config" not in message
