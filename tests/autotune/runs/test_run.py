"""What `python -m autotune` finds and writes."""

import json
from pathlib import Path

import pandas as pd
import pytest

import autotune
from autotune.best_config import read_best_config

from ..commands import autotune_here, autotune_run, trials
from ..conftest import FIXED_STEP, processes_of, wait_until

SETTINGS = list(autotune.ThroughputConfig(batch_size=1).to_dict())


@pytest.mark.alone
def test_a_run_finds_the_fastest_settings_and_writes_them(study):
    done = autotune_run(*study(confirm_rounds=2))
    assert done.returncode == 0, done.stderr
    best = read_best_config(Path("best_config.yaml"))
    assert best.config.batch_size == 8
    assert best.baseline.config.batch_size == 4
    assert best.speedup.significant
    assert best.speedup.low > 1.2
    assert best.expected.samples_per_s > 1.5 * best.baseline.samples_per_s
    assert "x faster: batch_size 4 -> 8; keep the other settings" in done.stdout
    assert "speed-up: " in done.stdout
    assert "measured 3 of 3 configurations" in done.stdout
    assert "an optimizer step now uses 8 samples instead of 4" in done.stdout

    frame = trials()
    assert list(frame["phase"]) == (["baseline", "probe", "search", "search"] + ["confirm"] * 2 * 2)
    assert (frame["state"] == "complete").all()
    assert set(frame["start_mode"][1:4]) == {"fork"}
    assert set(frame["start_mode"][4:]) == {"fresh"}
    assert {
        *SETTINGS,
        "number",
        "samples_per_s",
        "seconds_per_step",
        "cpu_utilisation",
        "data_wait_share",
        "peak_memory_bytes",
        "start_up_s",
        "duration_s",
        "cause",
    } <= set(frame.columns)
    assert (frame["samples_per_s"] > 0).all()
    assert frame["cpu_utilisation"].between(0, 1.5).all()
    assert set(best.study.trial_numbers) <= set(frame["number"])
    assert frame.attrs["study"] == "quick"
    assert not Path("epilogue").exists()
    # 10 ms to compute and 1 ms to load, whatever the batch.
    for role in ("baseline", "chosen"):
        assert f"the {role} settings are overhead-bound: the step alone reaches " in done.stdout
    assert frame["compute_units_per_s"].notna().equals(frame["phase"] == "confirm")
    assert (frame["steps_per_epoch"] == 4000).all()
    assert "note: the loop loads" not in done.stdout
    # The study is complete: its answer is written again, and nothing is measured.
    Path("best_config.yaml").unlink()
    elsewhere = autotune_run("--study", "quick.yaml", "--out", "other.yaml")
    assert "nothing is measured again" in elsewhere.stdout
    assert len(trials()) == len(frame)
    assert read_best_config(Path("other.yaml")) == best
    assert f"note: the loop loads {Path('best_config.yaml').absolute()}" in elsewhere.stdout


@pytest.mark.alone
def test_the_adaptive_search_is_the_default_and_says_how_sure_it_is(study):
    options = study(sampler="auto", axes={"batch_size": [1, 2, 4, 8, 16], "num_workers": [0]})
    done = autotune_run(*options, "--json")
    assert done.returncode == 0, done.stderr
    best = read_best_config(Path("best_config.yaml"))
    assert best.config.batch_size == 16
    assert best.speedup.low > 2
    result = json.loads(done.stdout)
    assert result["probability"] > 0.9
    for other in result["runners_up"]:
        batch_size = other["config"]["batch_size"]
        assert batch_size not in (4, 16)
        assert other["ratio"] == pytest.approx(batch_size / 16, rel=0.2)
    assert "probability these settings are within 2 % of the fastest of the 5" in done.stderr
    assert "pays for itself after" in done.stderr
    frame = trials()
    assert (frame["state"] == "complete").all()
    # Not more than were worth it.
    assert len(frame.query("phase == 'search'")) <= 4
    again = autotune_run(*options)
    assert "nothing is measured again" in again.stdout
    assert len(trials()) == len(frame)


@pytest.mark.alone
def test_axes_are_widened_where_the_best_lies_at_their_end(study):
    # Batches of up to 100 cost the same; in larger ones a sample costs ever more, so that 128 is
    # faster than 64 by 1.4 and than 256 by 1.35, far more than noise can hide.
    script = {"step": "time.sleep(0.01 * max(1.0, config.batch_size / 100) ** 1.5)"}
    changes = {"script": script, "axes": {"num_workers": [0]}}
    done = autotune_run(*study(sampler="auto", **changes))
    assert done.returncode == 0, done.stderr
    assert "lies at the end of an axis: batch_size 128 is tried, too" in done.stdout
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 128
    # It does not go on for ever.
    assert trials()["batch_size"].max() == 256
    again = autotune_run("--study", "quick.yaml")
    assert "nothing is measured again" in again.stdout


@pytest.mark.alone
def test_settings_that_change_nothing_are_no_gain_and_the_baseline_is_kept(study):
    # A batch costs next to nothing by itself: the gain is far below what counts as one.
    script = {"step": "time.sleep(0.003 * config.batch_size)", "item": "pass"}
    done = autotune_run(*study(script=script))
    assert done.returncode == 0
    assert "no significant gain" in done.stdout
    best = read_best_config(Path("best_config.yaml"))
    assert not best.speedup.significant
    assert best.config == best.baseline.config
    assert best.config.batch_size == 4


def test_the_effective_batch_is_kept_and_units_are_counted(study):
    done = autotune_run(
        *study(
            script={
                "load": ", effective_batch_size=8",
                "units": ", units=tokens",
                "step": FIXED_STEP,
            }
        )
    )
    assert done.returncode == 0, done.stderr
    best = read_best_config(Path("best_config.yaml"))
    assert best.config.gradient_accumulation_steps == 1
    assert best.baseline.config.gradient_accumulation_steps == 2
    frame = trials()
    assert (frame["batch_size"] * frame["gradient_accumulation_steps"] == 8).all()
    ratio = frame["units_per_s"] / frame["samples_per_s"]
    assert ((ratio - 10).abs() < 1e-6).all()
    assert set(frame["unit"]) == {"tokens"}
    assert "an optimizer step now uses" not in done.stdout
    assert best.expected.unit == "tokens"
    assert best.expected.units_per_s == pytest.approx(10 * best.expected.samples_per_s, rel=1e-4)
    assert "tokens/s" in done.stdout


def test_a_sampler_of_optuna_proposes_everything_once(study):
    options = study()
    assert autotune_run(*options, "--sampler", "tpe", "--seed", "3").returncode == 0
    visited = trials().query("phase in ('search', 'probe')")["batch_size"]
    assert sorted(visited) == [2, 4, 8]


def test_a_limit_on_trials_is_kept_and_the_next_run_goes_on(study):
    options = study(axes={"batch_size": [2, 3, 4, 8], "num_workers": [0]})
    done = autotune_run(*options, "--max-trials", "1")
    assert done.returncode == 0
    assert "measured 2 of 4 configurations; 2 not reached" in done.stdout
    assert autotune_run(*options).returncode == 0
    visited = trials().query("phase in ('search', 'probe')")["batch_size"]
    assert sorted(visited) == [2, 3, 4, 8]


def test_fresh_processes_do_where_forking_is_not_wanted(study):
    axes = {"batch_size": [4, 8], "num_workers": [0]}
    done = autotune_run(*study(axes=axes), "--start-mode", "fresh", "--quiet")
    assert done.returncode == 0
    assert set(trials()["start_mode"]) == {"fresh"}


def test_quiet_runs_still_give_the_answer_and_programs_can_read_it(study):
    options = study(training="5000 steps")
    done = autotune_run(*options, "--quiet")
    assert "speed-up" in done.stdout
    assert "pruned | best" not in done.stdout
    assert "the training, 5,000 steps" in done.stdout
    again = autotune_run(*options, "--quiet", "--json")
    assert again.stderr == ""
    result = json.loads(again.stdout)
    assert result["num_configurations"] == 3
    assert result["best"]["config"]["batch_size"] == 8
    shown = autotune_here("--json", command="show")
    assert len(json.loads(shown.stdout)) == len(trials())
    Path("shown.csv").write_text(autotune_here("quick", "--csv", command="show").stdout)
    assert list(pd.read_csv("shown.csv")["number"]) == list(trials()["number"])
    table = autotune_here(command="show")
    assert "study quick" in table.stdout
    assert "confirm" in table.stdout


def test_a_wider_space_is_answered_for_itself(study):
    options = study(axes={"batch_size": [4, 8], "num_workers": [0]})
    assert autotune_run(*options).returncode == 0
    wide = autotune_run(*options, "--axis", "batch_size=4,8,16")
    assert "nothing is measured again" not in wide.stdout
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 16


def test_a_space_of_only_the_baseline_is_no_gain(study):
    done = autotune_run(*study(axes={"batch_size": [4], "num_workers": [0]}))
    assert done.returncode == 0, done.stderr
    assert "no significant gain" in done.stdout
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 4


def test_where_forked_trials_fail_fresh_ones_are_used_in_later_runs_too(study):
    # As a library would that does not survive a fork.
    options = study(
        script={
            "before": "parent = os.getpid()",
            "step": "if os.getpid() != parent:\n    os._exit(1)\ntime.sleep(0.01)",
        },
    )
    done = autotune_run(*options, "--max-trials", "1")
    assert done.returncode == 0, done.stderr
    assert "each trial starts afresh: a forked trial failed" in done.stdout
    done = autotune_run(*options)
    assert "each trial starts afresh: a forked trial failed" in done.stdout
    assert list(trials()["state"]).count("failed") == 1
    assert "batch 8" in done.stdout


def test_where_forked_and_fresh_trials_differ_the_fresh_ones_count(study):
    options = study(
        script={
            "before": "parent = os.getpid()",
            "step": "time.sleep(0.01 if os.getpid() == parent else 0.06)",
        },
    )
    done = autotune_run(*options)
    assert done.returncode == 0, done.stderr
    best = read_best_config(Path("best_config.yaml"))
    assert best.config.batch_size == 8
    for summary in ("batch 4, workers 0", "batch 8, workers 0"):
        assert f"note: {summary} ran at " in done.stdout
    assert "in fresh processes: the fresh ones count" in done.stdout
    # 10 ms a step, not 60.
    assert best.expected.seconds_per_step < 0.04
    forked = trials().query("start_mode == 'fork'")
    assert (forked["seconds_per_step"] > 0.06).all()


def test_a_second_process_of_the_script_is_turned_away(study):
    code = (
        "import subprocess; env = os.environ | {'AGAIN': '1'}\n"
        "    if 'AGAIN' not in os.environ: subprocess.Popen([sys.executable, *sys.argv], env=env)"
    )
    axes = {"batch_size": [4], "num_workers": [0]}
    done = autotune_run(*study(script={"before": code}, axes=axes))
    assert done.returncode == 0, done.stderr
    assert wait_until(lambda: not processes_of(Path.cwd() / "train it.py"), 2.0)


@pytest.mark.long
def test_a_hanging_configuration_costs_no_more_than_the_budget_allows(study):
    script = {"step": "time.sleep(3600 if config.batch_size == 2 else 0.01)"}
    done = autotune_run(*study(script=script, budget="20s"))
    assert done.returncode == 0, done.stderr
    assert list(trials().query("state == 'failed'")["cause"]) == ["timed out"]


# A step that takes 64 MiB, uses it, and gives it back.
WASTEFUL = {
    "before": """
    import ctypes
    libc, size = ctypes.CDLL(None), 64 << 20
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]""",
    "step": "block = libc.malloc(size); ctypes.memset(block, 1, size); libc.free(block)",
}


def test_memory_that_is_taken_anew_in_each_step_is_kept(study):
    axes = {"batch_size": [4], "num_workers": [0], "gc": ["default"]}
    done = autotune_run(*study(script=WASTEFUL, axes=axes, sampler="auto"))
    assert done.returncode == 0, done.stderr
    assert "malloc default -> kept" in done.stdout
    best = read_best_config(Path("best_config.yaml"))
    assert best.config.malloc == "kept"
    assert best.speedup.ratio > 1.2
