"""Faults of the user's code and of the machine, made for real: see docs/faults.md."""

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from autotune.best_config import read_best_config
from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.measurement import FailureCause, StartMode
from autotune.trials.trial import TrialFailedError

from ..commands import (
    LONGEST_RUN_S,
    autotune_here,
    autotune_run,
    begin_process,
    begin_run,
    count_trials,
    trials,
)
from ..conftest import FIXED_STEP, QUICK, processes_of, wait_until

BLOCK = BlockRequest(min_s=0.05)
CONFIG = ThroughputConfig(batch_size=8, num_threads=1)
WORKER = ThroughputConfig(batch_size=8, num_workers=1, num_threads=1)
BOTH = (StartMode.FORK, StartMode.FRESH)


def fail(runner, config=CONFIG, mode=StartMode.FORK, deadline_s=10.0):
    """The failure of a trial that is asked for a few blocks."""
    with pytest.raises(TrialFailedError) as caught:
        trial = runner.start(config, mode)
        for _ in range(10):
            trial.measure(BLOCK, deadline_s=deadline_s)
    return caught.value.failure


@pytest.mark.parametrize("mode", BOTH)
def test_a_step_that_hangs_is_ended_and_its_line_is_named(light_script, start_runner, mode):
    command = light_script(step="time.sleep(3600)")
    failure = fail(start_runner(command), mode=mode, deadline_s=1.0)
    assert failure.cause is FailureCause.TIMED_OUT
    [line] = [
        n for n, text in enumerate(Path(command[1]).read_text().splitlines(), 1) if "3600" in text
    ]
    place = f"train it.py:{line} in main"
    assert failure.message == (
        f"the trial did not finish a block of steps within 1 s; it hung at {place}"
    )
    assert "most recent call first" in failure.output


def test_a_worker_that_hangs_is_told_from_a_step_that_does(script, start_runner):
    # Its first batch is a part of the start.
    runner = start_runner(script(item="time.sleep(3600)"), start_deadline_s=8.0)
    failure = fail(runner, WORKER)
    assert failure.cause is FailureCause.TIMED_OUT
    assert "it hung at train it.py:" in failure.message
    assert "in __getitem__" in failure.message


def test_a_script_that_hangs_before_it_calls_anything_is_named(light_script, start_runner):
    runner = start_runner(light_script(before="time.sleep(3600)"), start_deadline_s=2.0)
    failure = fail(runner)
    assert failure.cause is FailureCause.TIMED_OUT
    assert "did not call autotune.load_config within 2 s; it hung at train it.py" in failure.message


def test_a_script_that_never_gets_to_its_loop_is_named(light_script, start_runner):
    runner = start_runner(light_script(load=")\n    time.sleep(3600"), start_deadline_s=2.0)
    failure = fail(runner)
    assert failure.cause is FailureCause.TIMED_OUT
    assert (
        "did not get to the first batch of its loop within 2 s; it hung at train it.py"
        in failure.message
    )


@pytest.mark.parametrize(
    ("step", "cause", "message"),
    [
        ("bytearray(1 << 48)", FailureCause.OUT_OF_MEMORY, "MemoryError"),
        ("import torch; torch.empty(1 << 48)", FailureCause.OUT_OF_MEMORY, "allocate memory"),
        (
            "opened = [open('/dev/null') for _ in range(1 << 20)]",
            FailureCause.TOO_MANY_FILES,
            "raise that with `ulimit -n`",
        ),
        ("import ctypes; ctypes.string_at(0)", FailureCause.CRASHED, "SIGSEGV at train it.py:"),
        ("os.closerange(3, 256); time.sleep(60)", FailureCause.CRASHED, "closed its connection"),
    ],
)
def test_what_the_script_does_to_itself_is_told_apart(
    light_script, start_runner, step, cause, message
):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[0]), limits[1]))
    try:
        failure = fail(start_runner(light_script(step=step)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert failure.cause is cause, failure
    assert message in failure.message


def test_a_trial_that_prints_megabytes_costs_no_memory(light_script, start_runner):
    step = "print('x' * (1 << 20)); assert taken < 20, 'enough'"
    failure = fail(start_runner(light_script(step=step)))
    assert failure.message == "AssertionError: enough"
    assert len(failure.output) < 1 << 15


LEAVE = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
SLEEP = "import time; time.sleep(3600)"


@pytest.mark.parametrize("mode", BOTH)
def test_daemons_of_a_trial_end_with_it(light_script, start_runner, tmp_path, mode):
    mark = str(tmp_path / "daemon")
    daemon = f"""
        if taken == 0:
            import subprocess
            command = [sys.executable, "-c", {LEAVE!r}, sys.executable, "-c", {SLEEP!r}, {mark!r}]
            subprocess.run(command, check=True, start_new_session=True)
    """
    runner = start_runner(light_script(step=daemon))
    with runner.start(CONFIG, mode) as trial:
        trial.measure(BLOCK, deadline_s=10)
        assert wait_until(lambda: processes_of(mark))
    assert wait_until(lambda: not processes_of(mark), 2.0)


def test_a_server_that_the_script_started_before_its_loop_serves_all_trials(
    light_script, start_runner
):
    before = (
        "import subprocess; server = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(3600)'], start_new_session=True)"
    )
    step = "os.kill(server.pid, 0)"
    runner = start_runner(light_script(before=before, step=step))
    for _ in range(2):
        with runner.start(CONFIG, StartMode.FORK) as trial:
            assert trial.measure(BLOCK, deadline_s=10).blocks


def test_what_a_script_does_to_signals_and_its_directory_does_not_matter(
    light_script, start_runner, tmp_path
):
    before = (
        "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 15)]; os.chdir('/')"
    )
    command = light_script(before=before, step="os.path.exists(__file__) and os.unlink(__file__)")
    runner = start_runner(command)
    with runner.start(CONFIG, StartMode.FORK) as trial:
        assert trial.measure(BLOCK, deadline_s=10).blocks
        assert trial.measure(BLOCK, deadline_s=10).blocks
    runner.close()
    assert wait_until(lambda: not processes_of(command[1]), 2.0)


DIVERGING = """
    optimizer.zero_grad()
    (model(batch) ** 2).mean().backward()
    optimizer.step()
    time.sleep(0.001 if config.batch_size == 8 else 0.02)
"""
OPTIMIZER = """)
    model = torch.nn.Linear(1, 1)
    rate = 1e30 if config.batch_size == 8 else 1e-9
    optimizer = torch.optim.SGD(model.parameters(), lr=rate"""


@pytest.mark.long
def test_settings_with_which_training_diverges_cannot_win(script):
    command = list(script(step=DIVERGING, load=OPTIMIZER))
    axes = {"batch_size": [4, 8], "num_workers": [0], "gc": ["default"]}
    study = QUICK | {"command": command, "axes": axes}
    Path("quick.yaml").write_text(yaml.safe_dump(study))
    done = autotune_run("--study", "quick.yaml")
    assert done.returncode == 0, done.stderr
    found = trials()
    diverged = found[found["batch_size"] == 8]
    assert set(diverged["cause"]) == {"not finite"}
    assert "the training diverges with these settings" in done.stdout
    assert "batch_size: 8" not in Path("best_config.yaml").read_text()


def test_the_same_failure_with_all_settings_stops_a_run_early(study):
    axes = {"batch_size": [2, 4, 8, 16, 32, 64], "num_workers": [0], "num_threads": [1, 2]}
    script = {"step": "assert config.batch_size == 4 and config.num_threads != 2, 'no'", "load": ""}
    script["before"] = "default = autotune.ThroughputConfig(batch_size=4, num_threads=1)"
    options = study(axes=axes, script=script)
    done = autotune_run(*options)
    assert done.returncode == 1
    assert "configurations in a row failed alike" in done.stderr
    assert "AssertionError: no" in done.stderr
    assert len(trials()) < 12


def test_a_change_of_the_cores_ends_a_run(study):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("needs two cores")
    axes = {"batch_size": [2, 4, 8, 16, 32], "num_workers": [0], "num_threads": [1, 2]}
    run = begin_run(study(axes=axes), 4)
    os.sched_setaffinity(run.pid, {min(cores)})
    _, said = run.communicate(timeout=30)
    assert run.returncode == 1
    assert f"1 cores may be used now, and {len(cores)} when the run began" in said
    assert "running" not in set(trials()["state"])


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def memory_group():
    """A control group of 300 MiB; gives what puts a process into it."""
    try:
        relative = next(
            line.split(":", 2)[2]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if "memory" in line.split(":", 2)[1].split(",")
        )
        group = MEMORY_GROUPS / relative.lstrip("/") / f"autotune-test-{os.getpid()}"
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(300 << 20))
    except (OSError, StopIteration):
        pytest.skip("needs the right to make a control group for memory (version 1)")
    yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    assert wait_until(lambda: not (group / "cgroup.procs").read_text(), 5.0)
    group.rmdir()


def test_what_the_kernel_ends_for_memory_is_told_from_other_kills(light_script, memory_group):
    step = "hog = bytearray(1 << 30); [hog.__setitem__(n, 1) for n in range(0, 1 << 30, 4096)]"
    step = f"if config.batch_size == 8: {step}\nelse: time.sleep(0.01)"
    study = QUICK | {"command": list(light_script(step=step))}
    Path("quick.yaml").write_text(yaml.safe_dump(study))
    done = subprocess.run(
        [sys.executable, "-m", "autotune", "run", "--study", "quick.yaml"],
        preexec_fn=memory_group,
        capture_output=True,
        text=True,
        timeout=LONGEST_RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = trials()
    assert set(found[found["batch_size"] == 8]["cause"]) == {"out of memory"}, done.stdout
    # One bad configuration does not stop a run.
    assert "batch_size: 4" in Path("best_config.yaml").read_text()


def in_a_small_shm(command, mebibytes):
    """The same command with a /dev/shm of its own."""
    mount = f"mount -t tmpfs -o size={mebibytes}m tmpfs /dev/shm"
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]


# Workers hand over batches of 16 MiB.
COORDINATOR = """
import sys
from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode
from autotune.trials.runner import open_runner
from autotune.trials.trial import TrialFailedError

config = ThroughputConfig(batch_size=16, num_workers=2, num_threads=1)
with open_runner(sys.argv[1:], start_mode=None, start_deadline_s=60) as runner:
    try:
        runner.start(config, StartMode.FORK).measure(BlockRequest(min_s=0.2), deadline_s=30)
    except TrialFailedError as error:
        print(error.failure.cause, error.failure.message)
"""


def test_a_full_shared_memory_is_named_with_the_remedy(script):
    probe = subprocess.run(in_a_small_shm(["true"], 1), capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs the right to mount a file system")
    command = script(item="return torch.zeros(1 << 18)", step="time.sleep(0.02)")
    coordinator = [sys.executable, "-c", COORDINATOR, *command]
    done = subprocess.run(
        in_a_small_shm(coordinator, 24), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out of shared memory ")
    assert "--shm-size" in done.stdout


def test_a_trial_that_is_stopped_by_somebody_is_ended(light_script, start_runner):
    runner = start_runner(light_script(step=FIXED_STEP))
    trial = runner.start(CONFIG, StartMode.FORK)
    trial.measure(BLOCK, deadline_s=10)
    with pytest.raises(TrialFailedError, match="did not finish a block"):
        # Stopped for good: the signal comes again whenever it is continued.
        stopper = subprocess.Popen(
            ["sh", "-c", f"while kill -STOP {trial._origin.root_pid}; do :; done"],
            stderr=subprocess.DEVNULL,
        )
        try:
            trial.measure(BlockRequest(min_s=1.0), deadline_s=2)
        finally:
            stopper.kill()
            stopper.wait()
    assert wait_until(lambda: not psutil.pid_exists(trial._origin.root_pid), 2.0)


@pytest.mark.long
def test_a_full_disk_ends_a_run_in_one_line_and_the_next_goes_on(study):
    axes = {"batch_size": [2, 4, 8, 16, 32], "num_workers": [0], "num_threads": [1]}
    options = study(axes=axes)
    Path("best_config.yaml").write_text("of an earlier run\n")
    run = begin_run(options, 4, start=begin_process)
    # What a full disk does: what is written from here on fails.
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    _, said = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "error: storage sqlite:///" in said
    assert "What was stored before is kept" in said
    assert "Traceback" not in said
    assert Path("best_config.yaml").read_text() == "of an earlier run\n"
    measured = len(trials())
    done = autotune_run(*options, "--max-trials", "1")
    assert done.returncode == 0, done.stderr
    assert len(trials()) > measured


# The first forked trial of the largest batch and the first fresh one are killed: their parents are
# the host and the coordinator.
KILLED_ONCE = """
    mark = f"below {os.getppid()};"
    if config.batch_size == 8 and taken == 5 and mark not in open("killed").read():
        # A file that was there before: what steps create is removed with their trial.
        with open("killed", "a") as marks:
            marks.write(mark)
        os.kill(os.getpid(), 9)
    time.sleep(0.01)
"""


def test_settings_that_somebody_killed_once_can_still_win(study):
    Path("killed").touch()
    axes = {"batch_size": [4, 8], "num_workers": [0]}
    done = autotune_run(*study(script={"step": KILLED_ONCE}, sampler="auto", axes=axes))
    assert done.returncode == 0, done.stderr
    found = trials().query("batch_size == 8")
    assert list(found["cause"].dropna()) == ["killed", "killed"]
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 8


def test_how_a_worker_ended_is_told(script, start_runner):
    runner = start_runner(script(item="exec(open('end').read())"))
    for end, cause, message in (
        ("os.kill(os.getpid(), 9)", FailureCause.KILLED, "Killed"),
        ("os.kill(os.getpid(), 11)", FailureCause.CRASHED, "Segmentation fault"),
        ("os.kill(os.getpid(), 7)", FailureCause.OUT_OF_SHARED_MEMORY, "Bus error"),
        ("os._exit(3)", FailureCause.CRASHED, "exit code 3"),
        (
            "raise ValueError('no such image')",
            FailureCause.CRASHED,
            "ValueError: no such image (in a loader worker)",
        ),
    ):
        Path("end").write_text(end)
        failure = fail(runner, WORKER)
        assert failure.cause is cause, failure
        assert message in failure.message


SPAWN = "torch.multiprocessing.set_start_method('spawn', force=True)"


def test_a_missing_main_guard_is_named_where_workers_are_spawned(script, start_runner):
    command = script(before=SPAWN)
    path = Path(command[1])
    path.write_text(path.read_text().replace('if __name__ == "__main__":\n    main()', "main()"))
    failure = fail(start_runner(command), WORKER)
    assert failure.cause is FailureCause.CRASHED
    assert 'no `if __name__ == "__main__":` guard' in failure.message


def test_a_dataset_that_cannot_be_pickled_for_workers_is_told_with_the_remedy(script, start_runner):
    command = script(before=f"{SPAWN}; data.transform = lambda item: item")
    failure = fail(start_runner(command), WORKER)
    assert "main.<locals>.<lambda>' (the start method spawn pickles the dataset" in failure.message


def test_where_the_best_fails_in_the_confirmation_the_next_best_is_confirmed(study):
    script = {
        "before": "parent = os.getpid()",
        "step": "assert config.batch_size < 32 or os.getpid() != parent; time.sleep(0.01)",
    }
    axes = {"batch_size": [4, 16, 32], "num_workers": [0]}
    done = autotune_run(*study(script=script, axes=axes, sampler="auto"))
    assert done.returncode == 0, done.stderr
    confirmed = trials().query("phase == 'confirm'")
    assert set(confirmed.query("batch_size == 32")["state"]) == {"failed"}
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 16


@pytest.mark.long
def test_a_database_that_somebody_locks_ends_a_run_in_one_line(study):
    options = study(axes={"batch_size": [2, 4, 8, 16, 32], "num_workers": [0], "num_threads": [1]})
    run = begin_run(options, 4)
    with contextlib.closing(sqlite3.connect("studies/autotune.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        _, said = run.communicate(timeout=60)
        assert run.returncode == 1
        assert "database is locked. What was stored before is kept" in said
        # It can be read all the same.
        assert "study quick" in autotune_here(command="show").stdout
        # Whoever comes while it is locked is told the same.
        again = autotune_run(*options)
        assert again.returncode == 1
        assert "database is locked" in again.stderr
        other.rollback()
    for text in (said, again.stderr):
        assert "Traceback" not in text


def test_an_output_directory_that_vanished_costs_the_file_and_not_the_answer(study):
    Path("out").mkdir()
    axes = {"batch_size": [4, 8], "num_workers": [0]}
    options = (*study(axes=axes), "--out", "out/best_config.yaml")
    run = begin_run(options, 2)
    Path("out").rmdir()
    _, said = run.communicate()
    assert run.returncode == 2
    assert "out/best_config.yaml: cannot be written" in said
    measured = len(trials())
    Path("out").mkdir()
    done = autotune_run(*options)
    assert done.returncode == 0, done.stderr
    assert "this study is complete: nothing is measured again" in done.stdout
    assert len(trials()) == measured
    assert "batch_size: 8" in Path("out/best_config.yaml").read_text()


def test_what_can_only_be_read_is_refused_before_anything_is_measured(study, tmp_path):
    options = study()
    (tmp_path / "fixed").mkdir()
    mount = f"mount -t tmpfs -o ro tmpfs '{tmp_path / 'fixed'}'"
    probe = subprocess.run(["unshare", "--mount", "sh", "-c", mount], check=False)
    if probe.returncode:
        pytest.skip("needs the right to mount a file system")
    for place in (("--out", "fixed/best.yaml"), ("--storage", "fixed/a.db")):
        run = [sys.executable, "-m", "autotune", "run", *options, *place]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *run],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert "cannot be written: Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr
    assert count_trials() == 0


def test_a_directory_of_any_name_will_do(study, tmp_path, monkeypatch):
    directory = tmp_path / '-rf it\'s a "dir"\nof ünï—ço∂e'
    directory.mkdir()
    options = study(axes={"batch_size": [4, 8], "num_workers": [0], "num_threads": [1]})
    for file in ("quick.yaml", "train it.py"):
        (directory / file).write_bytes(Path(file).read_bytes())
    monkeypatch.chdir(directory)
    text = Path("quick.yaml").read_text().replace(str(tmp_path) + "/", "")
    Path("quick.yaml").write_text(text)
    done = autotune_run(*options)
    assert done.returncode == 0, done.stderr
    assert "batch_size: 8" in Path("best_config.yaml").read_text()
    assert len(trials()) >= 3


def test_a_name_that_is_no_text_is_bad_input_and_no_traceback(study):
    options = study()
    name = os.fsdecode(b"\xff\xfe.yaml")
    done = autotune_run(*options, "--out", f"nowhere/{name}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    Path("quick.yaml").rename(name)
    done = autotune_run("--study", name, command="doctor")
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr


def test_a_study_file_cannot_explode_or_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 10)]
    for content, said in (
        ("l0: &l0 [lol]\n" + "\n".join(levels), "aliases"),
        ("command: !!python/object/apply:os.system ['touch pwned']", "not valid YAML"),
    ):
        Path("study.yaml").write_text(content)
        done = autotune_run("--study", "study.yaml")
        assert done.returncode == 2
        assert said in done.stderr
    assert not Path("pwned").exists()
