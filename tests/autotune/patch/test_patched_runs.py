"""`autotune run --patch` and `autotune exec` with a script that does not call autotune."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autotune.best_config import read_best_config, write_best_config
from autotune.config import ThroughputConfig
from autotune.patch_target import PatchTarget

from ..commands import autotune_run, trials
from ..conftest import NO_DYNAMO, QUICK
from ..test_best_config import make_best

SCRIPT = (
    f"""
import os, sys, time
import torch
{NO_DYNAMO}
from torch import nn
from torch.utils.data import DataLoader, Dataset
"""
    + """

class Samples(Dataset):
    def __len__(self):
        return 128
    def __getitem__(self, index):
        time.sleep(0.004)
        return torch.full((4,), float(index)), index % 2

def main():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    schedule = None
    test_loader = DataLoader(Samples(), batch_size=32)
    train_loader = DataLoader(Samples(), 4, shuffle=True)
    num_steps = len(train_loader)
    with torch.no_grad():
        for samples, labels in test_loader:
            model(samples)
    for epoch in range(3):
        for samples, labels in train_loader:
            loss = nn.functional.cross_entropy(model(samples), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.save(model.state_dict(), f"epoch-{epoch}.pt")
    print("trained", train_loader.batch_size, train_loader.num_workers, num_steps,
          test_loader.batch_size, test_loader.num_workers, torch.get_num_threads(),
          os.environ.get("OMP_NUM_THREADS"))

main()
"""
)
MADE = "train_loader = DataLoader(Samples(), 4, shuffle=True)"
PLACE = f"train.py:{SCRIPT[: SCRIPT.index(MADE)].count(chr(10)) + 1}"
AXES = {"num_workers": [0, 2], "num_threads": [1], "prefetch_factor": [2], "gc": ["default"]}


@pytest.fixture(autouse=True)
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("train.py").write_text(SCRIPT)


def study(**changes):
    """Write a quick study of the script; gives the options that run it."""
    data = {**QUICK, "command": ["python", "train.py"], "axes": AXES, **changes}
    Path("quick.yaml").write_text(yaml.safe_dump(data))
    return ("--study", "quick.yaml")


def trained(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def write_file(config, **target):
    """Settings as a run writes them; `first_pass` and all else as for the script."""
    target = {
        "place": PLACE,
        "calls": (
            f"train.py, main: {MADE}",
            "train.py, <module>: main()",
        ),
        **target,
    }
    patch = PatchTarget(**target)
    write_best_config(
        Path("best_config.yaml"), dataclasses.replace(make_best(), config=config, patch=patch)
    )


def execute(*options):
    return autotune_run(*options, "--", "python", "train.py", command="exec")


def test_of_a_script_without_the_two_calls_it_is_said_that_it_can_be_patched():
    done = autotune_run(*study())
    assert done.returncode == 1
    assert "or tune it as it is with --patch" in done.stderr


@pytest.mark.long
def test_a_script_is_tuned_as_it_is_and_trained_with_what_was_found():
    done = autotune_run(*study(patch=True))
    assert done.returncode == 0, done.stderr
    assert f"patched: the DataLoader made at {PLACE}" in done.stdout
    assert "train with it: autotune exec -- python train.py" in done.stdout
    found = read_best_config(Path("best_config.yaml"))
    assert found.config == ThroughputConfig(batch_size=4, num_workers=2, num_threads=1)
    frame = trials()
    assert set(frame["batch_size"]) == {4}
    assert (frame.query("phase == 'search'")["start_mode"] == "fork").any()
    # What the trials' steps wrote is gone with them.
    assert not list(Path().glob("epoch-*.pt"))

    text = Path("train.py").read_text()
    Path("train.py").write_text(text.replace("import torch\n", "import torch\nimport math\n", 1))
    assert trained(execute()) == ["trained", "4", "2", "32", "32", "0", "1", "1"]
    # By itself the script trains as it always did.
    plain = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True)
    assert trained(plain)[:3] == ["trained", "4", "0"]


def test_a_batch_size_is_there_when_the_loader_is_made():
    write_file(ThroughputConfig(batch_size=16, num_threads=1), tunes_batch_size=True)
    assert trained(execute()) == ["trained", "16", "0", "8", "32", "0", "1", "1"]


def test_the_order_of_batches_and_torchs_switches_arrive_as_well():
    told = "train_loader.in_order, torch.get_float32_matmul_precision(), test_loader.in_order,"
    Path("train.py").write_text(SCRIPT.replace("num_steps,\n", f"{told}\n", 1))
    settings = {"num_workers": 1, "in_order": False, "matmul_precision": "high"}
    write_file(ThroughputConfig(batch_size=4, num_threads=1, **settings))
    assert trained(execute())[:6] == ["trained", "4", "1", "False", "high", "True"]


FOLDS = """
import torch
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.zeros(8, 1))
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for fold in range(3):
    loaders = {part: DataLoader(data, batch_size=4) for part in ("test", "train")}
    for [samples] in loaders["train"]:
        model(samples).sum().backward()
        optimizer.step()
    print(*(loader.num_workers for loader in loaders.values()))
"""


def test_a_loader_is_found_again_in_each_fold():
    Path("train.py").write_text(FOLDS)
    [made] = [line.strip() for line in FOLDS.splitlines() if "loaders = " in line]
    calls = (f"train.py, <dictcomp>: {made}", f"train.py, <module>: {made}")
    if sys.version_info >= (3, 12):
        # A comprehension is no function of its own there.
        calls = calls[1:]
    config = ThroughputConfig(batch_size=4, num_workers=1, num_threads=1)
    write_file(config, calls=calls, ordinal=1, num_made=2)
    assert trained(execute()) == ["0", "1"] * 3


def test_settings_that_find_no_loader_are_told():
    write_file(ThroughputConfig(batch_size=4, num_workers=1), calls=("other.py, main: x",))
    done = execute()
    assert trained(done)[1:3] == ["4", "0"]
    assert f"best_config.yaml: no DataLoader was made as at {PLACE}" in done.stderr


def test_a_process_that_only_prepares_is_not_warned_of():
    write_file(ThroughputConfig(batch_size=4, num_workers=1))
    Path("prepare.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader\nlist(DataLoader(range(3)))\n"
    )
    both = f"{sys.executable} prepare.py && {sys.executable} train.py"
    done = autotune_run("--", "sh", "-c", both, command="exec")
    assert trained(done)[1:3] == ["4", "1"]
    assert "no DataLoader was made" not in done.stderr


def test_a_start_up_hook_of_ones_own_is_run_as_well(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    # Other processes of the tests may be started meanwhile.
    (own / "sitecustomize.py").write_text(
        "import sys\nif 'train.py' in sys.orig_argv: print('own hook')\n"
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(own), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    write_file(ThroughputConfig(batch_size=4, num_workers=1))
    assert trained(execute())[:5] == ["own", "hook", "trained", "4", "1"]


def test_the_environment_is_printed_for_other_launchers():
    write_file(ThroughputConfig(batch_size=4, num_workers=1, num_threads=1))
    lines = autotune_run("--print", command="exec").stdout
    Path("environment.sh").write_text(lines)
    shell = f". ./environment.sh && {sys.executable} train.py"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True)
    assert trained(done)[1:3] == ["4", "1"]


def test_settings_of_a_script_with_the_two_calls_are_an_environment_only():
    best = make_best()
    write_best_config(Path("best_config.yaml"), best)
    names = autotune_run("--print", command="exec").stdout
    assert "export OMP_NUM_THREADS=1\n" in names
    assert "PYTHONPATH" not in names
    assert trained(execute())[1:3] == ["4", "0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config", "none.yaml", "--", "python", "train.py"), "none.yaml"),
        ((), "nothing to run: give a command"),
        (("--", "no-such-program"), "no-such-program is no program that can be run"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(options, message):
    write_file(ThroughputConfig(batch_size=4))
    done = autotune_run(*options, command="exec")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--patch", "--axis", "batch_size=4,8"), "add --patch-batch-size"),
        (("--patch", "--", "python", "missing.py"), "missing.py"),
    ],
)
def test_what_cannot_be_patched_is_told_in_one_line(options, message):
    done = autotune_run(*options, *(() if "--" in options else ("--", "python", "train.py")))
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_tells_what_would_be_patched():
    axes = {**AXES, "num_workers": [0]}
    done = autotune_run("--patch", "--json", *study(axes=axes), command="doctor")
    assert done.returncode == 0, done.stderr
    assert f"patched: the DataLoader made at {PLACE}" in done.stderr
    assert json.loads(done.stdout)["axes"]["num_workers"] == [0]
