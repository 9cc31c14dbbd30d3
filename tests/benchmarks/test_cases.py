"""The harness that judges cases: what it counts, and that it calls a wrong outcome wrong.

`python benchmarks/cases.py` runs all cases.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from benchmarks import case_tuning
from benchmarks.case_checks import has_own_traceback, judge, needs_training
from benchmarks.case_list import EXPECTED, SCRIPTS, Case, script_of
from benchmarks.case_training import (
    OBSERVER,
    LoaderPass,
    Training,
    is_mapped,
    lengthen,
    read_passes,
    shared_memory,
    summarise,
    train,
    trained_for,
    training_passes,
)
from benchmarks.case_tuning import Tuning, missing, tune
from benchmarks.cases import ROOT, Report, choose, make_table, run_case
from tests.autotune.conftest import QUICK

# Trains each script for a few steps in a process that is forked when torch is imported already, and
# what it imports with the first optimizer.
TRAINER = """
import json, os, runpy, sys
import numpy, torch
import autotune, sitecustomize

torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

NUM_UPDATES, MOST_BATCHES = 2, 40
take = sitecustomize.Pass.__next__

def take_few(self):
    updates = self._observer.steps.since(self._before)
    if updates >= NUM_UPDATES or self._num_batches >= MOST_BATCHES:
        self._num_samples += self._pending
        self._write("window")
        os._exit(0)
    return take(self)

sitecustomize.Pass.__next__ = take_few
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(order["directory"])
        os.environ.update(order["environment"])
        output = os.open("output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = [order["script"]]
        sys.path.insert(0, os.path.dirname(order["script"]))
        sitecustomize.start("log")
        code = 1
        try:
            runpy.run_path(order["script"], run_name="__main__")
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
            sys.stdout.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def trainer():
    path = os.pathsep.join(map(str, (OBSERVER, ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    # Compiling takes half a minute, and changes nothing that is looked at here.
    environment |= {"TORCH_COMPILE_DISABLE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield process
    process.communicate()


def test_each_script_has_its_expectation_and_a_header_that_says_what_is_right():
    assert {path.stem for path in SCRIPTS.glob("*.py")} == set(EXPECTED)
    for name in EXPECTED:
        header = ast.get_docstring(ast.parse(script_of(name).read_text()))
        assert "\nFollows: " in header, name
        assert "\nRight: " in header, name


def test_each_kind_of_the_first_four_has_at_least_six_cases():
    for kind in (1, 2, 3, 4):
        assert len(choose((), (kind,))) >= 6


# What torch's gloo backend says when it aborts a rank that destroys its group after the last epoch:
# seen once, in a plain training with torch 2.13.
GLOO_ABORT = "terminate called without an active exception"


def train_once(trainer, order):
    trainer.stdin.write(json.dumps(order) + "\n")
    trainer.stdin.flush()
    return trainer.stdout.readline()


@pytest.mark.parametrize("name", EXPECTED)
def test_each_script_trains_plainly(name, trainer, tmp_path):
    case = EXPECTED[name]
    if absent := missing(case.needs):
        pytest.skip(f"needs {', '.join(absent)}")
    for part in ("log", "tmp"):
        (tmp_path / part).mkdir()
    environment = {"TMPDIR": str(tmp_path / "tmp"), "CASES_LOG": str(tmp_path / "log")}
    environment |= {"RANK": "0", "WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29519"}
    order = {
        "directory": str(tmp_path),
        "script": str(script_of(name)),
        "environment": environment,
    }
    code = train_once(trainer, order)
    if code != "0\n" and GLOO_ABORT in (tmp_path / "output").read_text():
        (tmp_path / "output").unlink()
        code = train_once(trainer, order)
    assert code == "0\n", (tmp_path / "output").read_text()
    passes = [one for path in (tmp_path / "log").iterdir() for one in read_passes(path)]
    trained = training_passes(passes)
    assert sum(one.samples[-1] for one in trained) > 0
    if name != "no_optimizer":
        assert sum(one.updates for one in trained) >= 2


SCRIPT = """
import time
import torch
import autotune

EPOCHS = 2

class Numbers(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from range(30)

if __name__ == "__main__":
    data = {data}
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    config = autotune.load_config(None, default=autotune.ThroughputConfig(
        batch_size=4, num_workers={num_workers}, persistent_workers=False))
    for _ in range(EPOCHS):
        for i, batch in enumerate(autotune.steps(config.dataloader(data)), start=1):
            time.sleep(0.002)
            (parameter * batch.sum()).backward()
            if i % 2 == 0:
                optimizer.step()
        {after}
"""


def plain(tmp_path, *, num_workers=0, data="Numbers()", after="pass", **options):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(num_workers=num_workers, data=data, after=after))
    return train(
        script,
        ("python", "{script}"),
        checkout=ROOT,
        settings=None,
        seconds=0.5,
        **options,
    )


def test_plain_training_counts_samples_updates_and_epochs(tmp_path):
    found = plain(tmp_path, data="torch.arange(30)")
    assert found.error is None
    assert found.samples_per_epoch == 30
    # Eight batches of four, less two samples, and an optimizer step for every other batch.
    assert found.samples_per_update == 7.5
    assert found.samples_per_s > 0
    assert 0 < found.epoch_s < 10


def test_plain_training_sees_data_that_workers_repeat(tmp_path):
    assert plain(tmp_path).samples_per_epoch == 30
    assert plain(tmp_path, num_workers=2).samples_per_epoch == 60


def test_plain_training_that_fails_gives_the_reason(tmp_path):
    found = plain(tmp_path, after="raise ValueError('no more')")
    assert found.error == "ValueError: no more"
    assert found.samples_per_epoch == 30


def loader_pass(*times_s, samples):
    """A pass of 10 samples a stretch."""
    return LoaderPass(
        loader=0,
        drop_last=False,
        batch_size=10,
        times_s=times_s,
        samples=samples,
        updates=samples[-1] // 10,
        whole=True,
    )


def test_the_start_of_a_loader_is_no_part_of_a_training_and_ranks_train_at_once():
    """Workers that are spawned take seconds, and then each rank trains for as long."""
    passes = [
        loader_pass(0.0, 3.0, 3.5, samples=(0, 10, 60)),
        loader_pass(3.5, 4.0, 4.5, samples=(0, 50, 100)),
    ]
    assert trained_for(passes, 0) == pytest.approx(1.5)
    found = summarise([passes, passes], first_epochs=0, error=None)
    assert found.samples_per_s == pytest.approx(200.0)


def test_a_training_without_a_batch_is_an_error():
    assert summarise([], first_epochs=0, error=None).error == "no batch was delivered"


def test_only_the_length_of_a_training_is_changed(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("EPOCHS = 2\nMAX_STEPS = 100\nBATCH = 3\n    EPOCHS = 5\n")
    (tmp_path / "train.sh").write_text("python train.py\n")
    (tmp_path / "copy").mkdir()
    copy = lengthen(script, tmp_path / "copy")
    assert copy.read_text() == "EPOCHS = 400\nMAX_STEPS = 400000\nBATCH = 3\n    EPOCHS = 5\n"
    assert copy.with_suffix(".sh").exists()


CASE = Case(kind=1, samples_per_epoch=1000, samples_per_update=10)
PLAIN = Training(
    samples_per_s=100.0,
    samples_per_epoch=1000,
    samples_per_update=10.0,
    epoch_s=10.0,
    batch_size=10,
)
FASTER = dataclasses.replace(
    PLAIN, samples_per_s=200.0, samples_per_update=20.0, epoch_s=5.0, batch_size=20
)


def figures(batch_size, samples_per_s):
    return {
        "samples_per_s": samples_per_s,
        "seconds_per_optimizer_step": batch_size / samples_per_s,
    }


def settings(**changes):
    return {
        "batch_size": 10,
        "gradient_accumulation_steps": 1,
        "num_workers": 0,
        "num_threads": 2,
        **changes,
    }


def tuned(*, chosen=None, best=None, **changes) -> Tuning:
    found: dict[str, Any] = {
        "config": settings(batch_size=20) if chosen is None else chosen,
        "baseline": {"config": settings(), **figures(10, 100.0)},
        "expected": figures(20, 200.0),
        "speedup": {"ratio": 2.0, "low": 1.9, "high": 2.1, "significant": True},
        **(best or {}),
    }
    given: dict[str, Any] = {
        "exit_code": 0,
        "output": "",
        "duration_s": 50.0,
        "budget_s": 60.0,
        "best": found,
        "files": ("best_config.yaml", "studies"),
        **changes,
    }
    return Tuning(**given)


def faults(*, case=CASE, tuning=None, before=PLAIN, after=FASTER, speed=True):
    tuning = tuning or tuned()
    pairs = [(before, after), (before, after)] if needs_training(tuning) else []
    return judge(case, tuning, [before, before], pairs, speed=speed).wrong


def changed(case=CASE, **changes):
    return dataclasses.replace(case, **changes)


def test_a_right_outcome_is_right():
    verdict = judge(CASE, tuned(), [PLAIN], [(PLAIN, FASTER)])
    assert verdict.wrong == ()
    assert verdict.outcome == "2.00x (1.90 to 2.10), trained 2.00x: batch_size 10 -> 20"


def test_no_gain_is_right_where_nothing_was_changed():
    none = tuned(
        chosen=settings(),
        best={
            "expected": figures(10, 100.0),
            "speedup": {"ratio": 1.0, "low": 0.9, "high": 1.1, "significant": False},
        },
    )
    assert faults(tuning=none) == ()
    assert faults(case=changed(gain=1.5), tuning=none) == (
        "a speed-up of 1.5 is there, 1.00 was found",
    )


@pytest.mark.parametrize("rate", [100.0, 150.0, 300.0])
def test_a_speed_up_that_training_does_not_have_is_wrong(rate):
    after = dataclasses.replace(FASTER, samples_per_s=rate)
    [fault] = faults(after=after)
    assert fault == f"trains {rate / 100:.2f}x as fast; 2.00x (1.90 to 2.10) is stated"
    assert faults(after=after, speed=False) == ()
    assert faults(case=changed(settles=False), after=after) == ()


def test_a_speed_that_could_not_be_told_is_wrong():
    assert faults(after=dataclasses.replace(FASTER, samples_per_s=None)) == (
        "the speed of plain training could not be told",
    )


def test_trainings_that_differ_widen_the_tolerance():
    slow = dataclasses.replace(FASTER, samples_per_s=150.0)
    fast = dataclasses.replace(FASTER, samples_per_s=220.0)
    assert judge(CASE, tuned(), [PLAIN], [(PLAIN, slow), (PLAIN, fast)]).wrong == ()
    slow = dataclasses.replace(FASTER, samples_per_s=20.0)
    assert judge(CASE, tuned(), [PLAIN], [(PLAIN, slow), (PLAIN, fast)]).wrong != ()


def test_a_longer_epoch_is_wrong_even_where_samples_per_second_are_more():
    assert faults(after=dataclasses.replace(FASTER, epoch_s=16.0)) == (
        "an epoch takes 1.60 times as long with the file",
    )


def test_other_samples_per_epoch_are_wrong():
    after = dataclasses.replace(FASTER, samples_per_epoch=4000)
    assert faults(after=after) == ("an epoch with the file has 4,000 samples, not 1,000",)
    before = dataclasses.replace(PLAIN, samples_per_epoch=1010)
    assert "an epoch of the script has 1,010 samples, not 1,000" in faults(before=before)


def test_a_last_batch_that_is_dropped_is_no_fault():
    after = dataclasses.replace(FASTER, samples_per_epoch=990)
    assert faults(after=after)
    assert faults(after=dataclasses.replace(after, drop_last=True)) == ()
    assert faults(after=dataclasses.replace(after, drop_last=True, samples_per_epoch=960))


def test_wrong_samples_per_update_are_wrong():
    assert (
        faults(case=changed(samples_per_update=40))
        == (
            "baseline: 10 samples per update stated, not 40",
            "chosen: 20 samples per update stated, not 20 or 80",
        )[:1]
    )
    wrong = tuned(best={"expected": figures(64, 200.0)})
    assert faults(tuning=wrong) == ("chosen: 64 samples per update stated, not 20",)


def test_the_effective_batch_size_scales_what_is_expected():
    kept = tuned(
        chosen=settings(batch_size=5, gradient_accumulation_steps=2),
        best={"expected": figures(10, 200.0)},
    )
    after = dataclasses.replace(FASTER, samples_per_update=None, batch_size=5)
    assert faults(tuning=kept, after=after) == ()


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        ({"rules_out": ("batch_size",)}, "batch_size 20: it is to stay 10"),
        ({"settings": (("num_threads", 1),)}, "num_threads must be 1, not 2"),
        ({"says": ("get_worker_info",)}, "does not say 'get_worker_info'"),
        ({"never_says": ("it is D",)}, "says 'it is D'"),
        ({"refused": True}, "exit code 0: it must be refused"),
    ],
)
def test_an_outcome_that_the_record_does_not_allow_is_wrong(case, fault):
    assert faults(case=changed(**case), tuning=tuned(output="It is done\n")) == (fault,)


def test_the_name_of_the_script_is_not_what_the_output_says():
    output = "command: python disk_cache.py\nstudy: disk_cache-1 in x\n  at /tmp/disk_cache.py:9\n"
    case = changed(says=("cache",))
    assert faults(case=case, tuning=tuned(output=output)) == ("does not say 'cache'",)
    assert faults(case=case, tuning=tuned(output=f"{output}the dataset has a cache\n")) == ()


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        ({"exit_code": None, "best": None}, "did not end within 50 s"),
        ({"exit_code": 1, "output": "error: no data"}, "not tuned"),
        ({"duration_s": 80.0}, "took 80 s of 60 s"),
        ({"left": ("process python train.py",)}, "left process python train.py"),
        ({"files": ("model.pt",)}, "wrote model.pt into the user's directory"),
    ],
)
def test_a_run_that_goes_wrong_is_wrong(run, fault):
    tuning = dataclasses.replace(tuned(), **run)
    assert faults(tuning=tuning) == (fault,)


def test_files_of_the_code_after_the_loop_are_wrong_and_those_of_the_loop_are_not():
    case = changed(may_write=("model-*.pt",), must_not_exist=("model-final.pt",))
    assert faults(case=case, tuning=tuned(files=("studies", "model-200.pt"))) == ()
    assert faults(case=case, tuning=tuned(files=("model-final.pt",))) == (
        "code after the loop ran in a trial: model-final.pt",
    )


def test_a_training_that_fails_with_the_file_is_wrong():
    after = Training(error="RuntimeError: bootstrapping")
    assert faults(after=after) == ("training with the file fails: RuntimeError: bootstrapping",)


def test_a_refusal_is_right_where_it_is_expected():
    refused = tuned(exit_code=1, output="error: use torchrun\n", files=())
    verdict = judge(changed(refused=True), dataclasses.replace(refused, best=None), [], [])
    assert verdict.wrong == ()
    assert verdict.outcome == "exit code 1: error: use torchrun"


def test_a_traceback_is_autotunes_own_where_it_ends_in_its_code():
    user = """
    Traceback (most recent call last):
      File "/site-packages/autotune/measured_loop.py", line 3, in __iter__
        yield
      File "/home/me/train.py", line 9, in <module>
        raise ValueError
    ValueError
    """
    own = user.replace("/home/me/train.py", "/site-packages/autotune/instrument/fork_server.py")
    assert not has_own_traceback(textwrap.dedent(user))
    assert has_own_traceback(textwrap.dedent(own))
    assert faults(tuning=tuned(output=textwrap.dedent(own))) == ("a traceback of autotune's own",)


MESSY = """
import os, subprocess, sys, tempfile, time
tempfile.mkdtemp(prefix="left-")
open("model.pt", "w").close()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True,
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("budget", sys.argv)
time.sleep({sleep_s})
sys.exit(3)
"""


@pytest.fixture
def messy(tmp_path, monkeypatch):
    """Runs a program that leaves things behind, in place of autotune."""
    monkeypatch.setattr(case_tuning, "_GONE_S", 0.2)
    monkeypatch.setattr(case_tuning, "_PATIENCE_S", 1.0)

    def run(*, sleep_s=0.0):
        (tmp_path / "work").mkdir()
        package = tmp_path / "checkout" / "autotune"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(MESSY.format(sleep_s=sleep_s))
        return tune(
            tmp_path / "train.py",
            ("python", "{script}"),
            tmp_path / "work",
            checkout=tmp_path / "checkout",
            budget_s=1.0,
            options=("--allow-busy",),
        )

    return run


def test_what_a_run_leaves_is_found_and_ended(messy):
    found = messy()
    assert found.exit_code == 3
    assert found.files == ("model.pt",)
    process, directory = sorted(found.left, key=lambda name: "left-" in name)
    assert process.startswith("process python")
    assert directory.startswith("left-")
    assert directory.endswith("in the temporary directory")
    assert "'--budget', '1s', '--allow-busy', '--', 'python'" in found.output


def test_a_run_that_hangs_is_ended(messy):
    begin_s = time.monotonic()
    assert messy(sleep_s=60.0).exit_code is None
    assert time.monotonic() - begin_s < 30


def report(**changes):
    given = {"name": "case", "kind": 1, "outcome": "2.00x", "wrong": (), "seconds": 9.0, **changes}
    return Report(**given)


def test_the_table_has_what_is_right_wrong_and_skipped_beside_what_was_before():
    reports = [
        report(name="one"),
        report(name="two", wrong=("took [75] s",)),
        report(name="three", outcome="skipped: needs cv2", wrong=None),
    ]
    before = {"one": dataclasses.asdict(report(outcome="hung", wrong=("it hung",)))}
    console = Console(width=160, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    console.print(make_table(reports, before))
    text = console.export_text()
    console.file.close()
    assert "1 of 2 cases right" in text
    for part in ("hung: wrong: it hung", "wrong: took [75] s", "skipped: needs cv2", "right"):
        assert part in text


def test_a_case_whose_package_is_missing_is_skipped(monkeypatch):
    monkeypatch.setitem(EXPECTED, "absent", Case(kind=1, needs=("no_such_package",)))
    found = run_case("absent", ROOT, budget_s=1.0, train_s=1.0, num_pairs=1)
    assert found.outcome == "skipped: needs no_such_package"
    assert found.wrong is None


def test_cases_are_chosen_by_name_kind_and_speed():
    assert choose(("padding_free",), ()) == ["padding_free"]
    assert set(choose((), (6,))) == {"mp_spawn_ranks", "torchrun_ranks"}
    assert all(EXPECTED[name].fast for name in choose((), (), fast=True))


# Axes that make a whole run short. Where a value is to be ruled out, it is among them.
FAST_AXES = {
    "batch_larger_than_data": {
        "batch_size": [16, 32, 128],
        "num_workers": [0],
        "num_threads": [1],
        "gc": ["default"],
    },
}


# Whole runs in about half a minute; speeds are not judged on a machine that is shared.
@pytest.mark.long
@pytest.mark.parametrize("name", choose((), (), fast=True))
def test_a_whole_case_is_right(name, tmp_path):
    study = tmp_path / "study.yaml"
    quick = {key: value for key, value in QUICK.items() if key != "budget"}
    study.write_text(yaml.safe_dump({**quick, "axes": FAST_AXES[name], "command": ["python"]}))
    found = run_case(
        name,
        ROOT,
        budget_s=80.0,
        train_s=0.5,
        num_pairs=1,
        options=("--study", str(study)),
        speed=False,
    )
    assert found.wrong == (), found.output


def test_what_another_process_shares_is_not_taken_for_a_leftover():
    """Semaphores of others that appear meanwhile are theirs, whatever they were made as."""
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    path = Path(f"/dev/shm/sem.{semaphore._semlock.name.removeprefix('/')}")
    assert path in shared_memory()
    assert is_mapped(path)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as left:
        assert not is_mapped(Path(left.name))
