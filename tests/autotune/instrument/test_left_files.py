"""What was there before a trial's steps stays, whatever these do to it."""

import subprocess
import sys

import pytest

from autotune.trials.watchdog import remove_left_files

# A process whose steps are what follows; what was there before lies in its directory.
STEPS = """
import functools, glob, os, pathlib, shutil, sys, tempfile
from os import remove as taken_before
from shutil import rmtree
from autotune.instrument.effect_guard import EffectGuard
from autotune.instrument.left_files import LeftFiles
os.mkdir("made_in_preparation")
in_step = []
left = LeftFiles(pathlib.Path("notes"), lambda: bool(in_step))
left.install()
EffectGuard(left.note, lambda _: None).install()
open("lock", "w").close()
in_step.append(True)
"""
ROTATION = """
for step in range(4, 7):
    os.mkdir(f"dir_{step}")
    open(f"dir_{step}/model", "w").close()
    for old in sorted(glob.glob("dir_*"))[:-2]:
        shutil.rmtree(old)
"""
CHAIN = """
for number in (2, 1):
    if os.path.exists(f"step_{number}"):
        os.replace(f"step_{number}", f"step_{number + 1}")
"""
THERE = ("dir_1/model", "dir_2/model", "latest", "made_before/file", "step_1", "step_2", "step_3")


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Runs steps; gives what lies there once it was removed what these have created."""
    directory = tmp_path / "training"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for name in THERE:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("step_1") if name == "latest" else path.write_text(name)

    def run(code):
        command = [sys.executable, "-c", STEPS + code]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        remove_left_files(directory / "notes")
        for name in THERE:
            kept = directory / name
            assert kept.is_symlink() if name == "latest" else kept.read_text() == name, name
        left = {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()}
        return done, left - set(THERE)

    return run


@pytest.mark.parametrize(
    "code",
    [
        "os.remove('step_1'); os.unlink('step_2'); pathlib.Path('step_3').unlink()",
        "shutil.rmtree('dir_1'); rmtree('dir_2'); rmtree(pathlib.Path('made_before'))",
        "shutil.rmtree('dir_1'); os.makedirs('dir_1'); open('dir_1/other', 'w').close()",
        "os.remove('dir_1/model'); os.removedirs('dir_1')",
        "os.chdir('dir_1'); os.remove('model'); os.remove('../step_1')",
        "os.truncate('step_1', 0)",
        "link = pathlib.Path('latest'); link.unlink(); link.symlink_to('step_2')",
        "os.remove('latest'); os.symlink('step_2', 'latest')",
        "os.symlink('step_2', 'new'); os.replace('new', 'latest')",
        "os.rename('step_1', 'previous'); open('step_4', 'w').close()",
        "shutil.move('step_1', 'dir_1'); shutil.move('dir_2', 'elsewhere')",
        "os.mkdir('new'); os.rename('new', 'step_9')",
        "fd = os.open('dir_1', os.O_RDONLY); os.unlink('model', dir_fd=fd)",
        CHAIN,
        ROTATION,
    ],
)
def test_what_was_there_before_stays(steps, code):
    done, left = steps(code)
    assert done.returncode == 0, done.stderr
    assert left == {"lock"}


def test_what_a_trial_has_created_it_may_remove(steps):
    code = """
os.remove("lock")
os.mkdir("new"); open("new/file", "w").close()
os.rename("new", "newer")
os.remove("newer/file"); os.rmdir("newer")
os.mkdir("tree"); open("tree/file", "w").close(); rmtree("tree")
with tempfile.TemporaryDirectory() as name:
    open(name + "/file", "w").close()
gone = ["lock", "new", "newer", "tree", name]
sys.exit(any(map(os.path.lexists, gone)))
"""
    done, left = steps(code)
    assert (done.returncode, left) == (0, set()), done.stderr


def test_a_function_taken_before_is_stopped_with_what_to_do(steps):
    done, _ = steps("taken_before('step_1')")
    assert done.returncode == 1
    assert "step_1, which was there before: remove nothing where autotune.is_trial()" in done.stderr
