"""The script that proves the GPU support, as far as that goes without a GPU.

`python benchmarks/gpu.py` runs it on one.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune.best_config import Speedup
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, StartMode
from autotune.study.records import Phase
from benchmarks import gpu, gpu_judges, gpu_processes, gpu_rows
from benchmarks.gpu_judges import Verdict
from benchmarks.gpu_processes import RowError
from benchmarks.gpu_rows import ROWS, Row
from benchmarks.gpu_runs import LOOPS, RANKS, Bench, Training, settings_option
from tests.autotune.made_up import block, device, record_of, sample

SCRIPT = Path(gpu.__file__)
NO_LOOPS = ("loop_options", "photos", RANKS)
NO_GPU = {"gpu": None, "torch": "2.13.0"}


def trial(batch_size=4, *, number=0, phase=Phase.SEARCH, mode=StartMode.FORK, on_gpu=True):
    """A trial that was measured."""
    config = ThroughputConfig(batch_size=batch_size)
    samples = (sample(block(), devices=(device(),) if on_gpu else ()),)
    return record_of(samples, config=config, number=number, phase=phase, start_mode=mode)


def failed(batch_size=4, *, number=0, cause=FailureCause.OUT_OF_DEVICE_MEMORY):
    """A trial that was not."""
    failure = Failure(cause=cause, message="it broke")
    config = ThroughputConfig(batch_size=batch_size)
    return record_of(
        (sample(block()),), config=config, number=number, measurement=None, failure=failure
    )


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    """What the script does to its environment ends with a test."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.main(["--quick"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "benchmarks/gpu.py: there is no GPU that torch can use here: nothing to run"
    ]


def test_missing_packages_are_named_on_one_line(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "NEEDS", ("torch", "no_such_package", "nor_this"))
    assert gpu.main(["--quick"]) == gpu.EXIT_UNUSABLE
    (line,) = capsys.readouterr().out.splitlines()
    assert "needs no_such_package, nor_this" in line


def test_rows_are_listed_without_running_any(capsys):
    assert gpu.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ROWS)


@pytest.fixture
def bench(tmp_path):
    return Bench(device="cpu", quick=True, scale=1.0, logs=tmp_path, end_s=time.monotonic() + 150.0)


@pytest.fixture
def rows(monkeypatch):
    """Rows that run nothing, in place of the real ones."""
    monkeypatch.setattr(gpu_processes, "ask_torch", lambda: NO_GPU)

    def replace(**found):
        monkeypatch.setattr(gpu_rows, "ROWS", found)

    return replace


def passing(_):
    return Verdict(passed=True, rule="it is so", figures={"ratio": 1.0})


def breaking(_):
    raise RowError("it broke\nin two lines")


def test_a_row_that_breaks_leaves_the_others_alone(rows, tmp_path, capsys):
    rows(broken=Row(title="broken", run=breaking), sound=Row(title="sound", run=passing))
    path = tmp_path / "found.json"
    code = gpu.main(["--device", "cpu", "--json", str(path), "--logs", str(tmp_path / "logs")])
    assert code == gpu.EXIT_FAILED
    broken, sound = json.loads(path.read_text())["rows"]
    assert (broken["verdict"], broken["message"]) == ("fail", "it broke in two lines")
    assert (sound["verdict"], sound["figures"]) == ("pass", {"ratio": 1.0})
    assert "1 of 2 rows passed" in capsys.readouterr().out


def test_what_was_found_is_written_after_each_row(rows, tmp_path):
    path = tmp_path / "found.json"
    seen = []

    def look(_):
        seen.append(path.exists() and json.loads(path.read_text())["rows"])
        return passing(_)

    rows(first=Row(title="first", run=look), second=Row(title="second", run=look))
    options = ("--device", "cpu", "--json", str(path), "--logs", str(tmp_path / "logs"))
    assert gpu.main(options) == 0
    assert not seen[0]
    assert [row["verdict"] for row in seen[1]] == ["pass", "not reached"]


def test_a_row_is_not_begun_where_too_little_time_is_left(rows, bench):
    rows(long=Row(title="long", run=passing, need_s=30.0))
    assert gpu.run_row(bench, "long").verdict == "pass"
    bench.end_s = time.monotonic() + 20.0
    assert gpu.run_row(bench, "long").verdict == "not reached"


def test_rows_for_a_gpu_have_no_verdict_on_a_cpu(rows, bench):
    rows(gpu=Row(title="gpu", run=breaking, gpu_only=True))
    assert gpu.run_row(bench, "gpu").verdict == "no verdict"


def test_a_run_that_fails_is_not_repeated_for_other_rows(bench, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(bench.__class__, "command", lambda *_: commands.append(1) or ["false"])
    for _ in range(2):
        with pytest.raises(RowError, match="exit code"):
            bench.tune("none", "tiny_mlp", budget_s=5.0, no_such_key=1)
    assert len(commands) == 1
    assert "no_such_key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("records", "reason", "passed"),
    [
        ([trial(), trial(8)], None, True),
        ([trial(), trial(8, mode=StartMode.FRESH)], None, False),
        ([trial(), trial(8)], "CUDA is in use", False),
        ([trial(), trial(8), failed(16)], None, False),
        ([trial(), trial(8, on_gpu=False)], None, False),
        ([], None, False),
    ],
)
def test_forking_needs_every_trial_forked_and_sound(records, reason, passed):
    assert gpu_judges.forked(records, reason, on_gpu=True).passed is passed


def test_ready_time_must_be_half_of_a_cold_start_by_medians():
    assert gpu_judges.ready_time([1.0, 1.0, 9.0], [2.5]).passed
    assert not gpu_judges.ready_time([1.5], [2.5]).passed


def test_rates_may_differ_by_five_per_cent():
    assert gpu_judges.same_rate({"a": [0.95, 0.97], "b": [1.03, 1.05]}).passed
    found = gpu_judges.same_rate({"a": [0.95, 0.97], "b": [1.11, 1.12, 1.11]})
    assert (found.passed, found.message) == (False, "b: 1.113")


@pytest.mark.parametrize("ratios", [[0.9, 1.3, 1.1], [1.5]])
def test_rates_that_are_too_uncertain_are_no_failure(ratios):
    found = gpu_judges.same_rate({"a": [0.95, 0.97], "b": ratios})
    assert (found.passed, found.message) == (None, "too uncertain: b")


def test_cold_trials_need_a_printed_reason_that_names_cuda():
    reason = "CUDA is initialised when load_config is called"
    output = "each trial starts afresh: CUDA is initialised\nwhen load_config is called"
    cold = [StartMode.FRESH] * 3
    assert gpu_judges.told_reason(cold, reason, output=output).passed
    assert not gpu_judges.told_reason(cold, reason, output="").passed
    assert not gpu_judges.told_reason(cold, None, output=output).passed
    assert not gpu_judges.told_reason(cold[:2], reason, output=output).passed
    assert not gpu_judges.told_reason([*cold, StartMode.FORK], reason, output=output).passed


@pytest.mark.parametrize(
    ("significant", "trained", "passed"),
    [(True, [1.9, 2.1], True), (True, [2.7, 2.7], False), (False, [1.0, 1.0], None)],
)
def test_trained_speed_up_must_be_within_what_was_stated(significant, trained, passed):
    stated = Speedup(ratio=2.0, low=1.8, high=2.2, significant=significant)
    assert gpu_judges.stated_gain(stated, trained, 20.0).passed is passed


SOUND = [trial(64), failed(160, number=1), trial(64, number=2)]
NOT_STARTED = failed(320, number=3, cause=FailureCause.NO_HEADROOM)


@pytest.mark.parametrize(
    ("records", "changes", "said"),
    [
        (SOUND, {}, ""),
        (SOUND, {"left_mib": None}, ""),
        ([*SOUND, NOT_STARTED], {}, ""),
        ([trial(64), NOT_STARTED], {}, "nothing ran out"),
        ([*SOUND, failed(320, number=3)], {}, "heavier"),
        ([failed(32, number=3, cause=FailureCause.CRASHED), *SOUND], {}, "failed otherwise"),
        (SOUND[:2], {}, "no trial worked afterwards"),
        (SOUND, {"chosen_share": 0.95}, "of the memory"),
        (SOUND, {"chosen_share": None}, "not known"),
        (SOUND, {"left_mib": 500.0}, "stay in use"),
    ],
)
def test_running_out_of_memory_must_be_recognised_and_leave_nothing(records, changes, said):
    given = {"chosen_share": 0.75, "left_mib": 0.0, "told": ""}
    found = gpu_judges.out_of_memory(records, **given | changes)
    assert found.passed is not bool(said)
    assert said in found.message


@pytest.mark.parametrize(
    ("offered", "chosen", "ratio", "passed"),
    [
        (True, True, 1.2, True),
        (True, False, 1.2, False),
        (True, False, 0.8, True),
        (True, True, 0.98, True),
        (False, True, 1.2, False),
    ],
)
def test_the_faster_of_pinned_and_not_must_be_chosen(offered, chosen, ratio, passed):
    found = gpu_judges.pinned(offered=offered, chosen=chosen, ratio=ratio)
    assert found.passed is passed


def test_a_compiled_script_must_be_measured_without_its_compilation():
    rates = {"compiled_per_s": 100.0, "plain_per_s": 50.0, "compile_s": 9.0}
    assert gpu_judges.compiled([trial()], stated_per_s=95.0, **rates).passed
    assert not gpu_judges.compiled([trial()], stated_per_s=80.0, **rates).passed
    timed_out = failed(cause=FailureCause.TIMED_OUT)
    found = gpu_judges.compiled([trial(), timed_out], stated_per_s=95.0, **rates)
    assert "timed out" in found.message


def test_a_run_may_exceed_its_budget_by_little():
    given = {"budget_s": 60.0, "num_trials": 9, "cold_s": 5.0, "complete": True}
    assert gpu_judges.search_time(tuning_s=65.0, **given).passed
    assert not gpu_judges.search_time(tuning_s=75.0, **given).passed


def test_the_choice_must_be_near_the_best_of_the_grid():
    grid = {"a": (100.0, 101.0), "b": (50.0, 50.0)}
    assert gpu_judges.near_best((96.0, 97.0), grid).passed
    found = gpu_judges.near_best((90.0, 91.0), grid)
    assert (found.passed, found.message) == (False, "a is faster")


def test_a_choice_whose_trainings_lie_far_apart_is_not_judged():
    found = gpu_judges.near_best((80.0, 100.0), {"a": (90.0, 110.0), "b": (50.0, 50.0)})
    assert (found.passed, found.message) == (None, "too uncertain")


@pytest.mark.parametrize(
    ("num_disturbed", "causes", "passed"),
    [
        (6, ("other work on the GPU",), True),
        (4, ("other work on the GPU",), False),
        (6, ("other processes",), False),
    ],
)
def test_blocks_beside_a_busy_gpu_must_be_called_disturbed(num_disturbed, causes, passed):
    assert gpu_judges.disturbed(num_disturbed, 10, causes).passed is passed


def test_the_bound_must_be_the_expected_one():
    expected = {"images": "data-bound"}
    assert gpu_judges.bounds({"images": "data-bound"}, expected).passed
    assert not gpu_judges.bounds({"images": None}, expected).passed


def test_figures_are_shown_for_people():
    figures = {"a": 0.12345, "b": [1, 2], "c": None, "d": True, "e": {"f": 12345.6}, "g": []}
    assert list(map(gpu.show, figures.values())) == [
        *("0.123", "1 2", "unknown", "yes", "f: 12,346", "none")
    ]


# One process, so that torch is imported once.
TRAINER = """
import json, pathlib, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    sys.path.insert(0, str(pathlib.Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
"""


@pytest.mark.long
def test_every_training_script_has_its_loop_on_a_cpu(bench, tmp_path):
    options = ("--seconds", "0.2", "--sample-mib", "1")
    # Ranks end their process.
    loops = [*sorted(path.stem for path in LOOPS.glob("*.py") if path.stem not in NO_LOOPS), RANKS]
    assert len(loops) == 8
    commands = []
    for loop in loops:
        words = bench.command(loop, *options)
        commands.append(words[words.index(str(LOOPS / f"{loop}.py")) :])
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | place | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    # Frameworks print, too.
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"samples_per_s"')]
    found = [Training(**json.loads(line)) for line in lines]
    assert len(found) == len(loops), done.stdout
    assert all(training.samples_per_s > 0 and training.num_steps > 5 for training in found)


def test_a_script_is_trained_for_a_while_with_its_settings(bench):
    settings = settings_option({"batch_size": 32})
    (found,) = bench.train("one", [("tiny_mlp", settings, None)], 0.2)
    assert found.samples_per_s > 0
    assert found.measured_s >= 0.2


def test_a_training_that_fails_says_why(bench, capsys):
    wrong = settings_option({"batch_size": 0})
    with pytest.raises(RowError, match=r"training wrong_0 failed: .*batch_size must be"):
        bench.train("wrong", [("tiny_mlp", wrong, None)], 0.2)
    assert "--- the end of the output of wrong_0" in capsys.readouterr().err


# Starts trials for real; their times mean nothing here.
@pytest.mark.long
def test_a_row_really_runs_on_a_cpu(tmp_path):
    path = tmp_path / "found.json"
    options = ("--device", "cpu", "--quick", "--only", "ready_time", "--scale", "0.5")
    options += ("--allow-busy", "--json", str(path), "--logs", str(tmp_path / "logs"))
    done = subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False
    )
    (row,) = json.loads(path.read_text())["rows"]
    assert row["verdict"] in ("pass", "fail"), done.stderr
    assert 0 < row["figures"]["forked_s"] < 60
    assert 0 < row["figures"]["cold_s"] < 60
