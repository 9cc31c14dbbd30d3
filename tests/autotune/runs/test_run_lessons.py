"""Whole runs of loops that fail with some settings, or run otherwise when they are forked."""

from pathlib import Path

from autotune.best_config import read_best_config

from ..commands import autotune_here, autotune_run, trials

FORKED = "os.getpid() != parent"
PARENT = "parent = os.getpid()"


def test_a_value_with_which_trials_fail_alike_is_ruled_out_in_one_line(study):
    script = {"step": "assert not config.num_workers, f'at {id(config)}'; time.sleep(0.01)"}
    axes = {"batch_size": [2, 4, 8], "num_workers": [0, 1, 2, 4]}
    options = study(script=script, axes=axes)
    done = autotune_run(*options)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if "is ruled out: " in line]
    assert line.startswith("num_workers > 0 is ruled out: 2 trials failed alike: AssertionError:")
    assert len(trials().query("state == 'failed'")) == 2
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 8
    assert "not measured │ num_workers" in done.stdout
    # A wider space, in which nothing of that is tried again.
    wider = {**axes, "batch_size": [2, 4, 8, 16]}
    assert autotune_run(*study(script=script, axes=wider)).returncode == 0
    assert len(trials().query("state == 'failed'")) == 2


def test_a_gain_that_was_measured_and_cannot_be_confirmed_is_told(study):
    script = {
        "before": PARENT,
        "step": f"assert config.batch_size == 4 or {FORKED}, 'only forked'; time.sleep(0.01)",
    }
    done = autotune_run(*study(script=script, sampler="auto"))
    assert done.returncode == 0, done.stderr
    for shown in (done, autotune_here(command="show")):
        [line] = [line for line in shown.stdout.splitlines() if line.startswith("no gain is")]
        assert "in the search with batch 8, workers 0, which could not be confirmed" in line
        assert "in a fresh process it failed: crashed: AssertionError: only forked" in line
    assert read_best_config(Path("best_config.yaml")).config.batch_size == 4


def test_where_forked_trials_mislead_the_search_goes_on_in_fresh_processes(study):
    # Forked, the largest batch is the fastest; in fresh processes it is slower than the baseline.
    script = {
        "before": PARENT,
        "step": f"""
            time.sleep(0.02 if {FORKED} or config.batch_size < 8 else 0.06)
        """,
    }
    axes = {"batch_size": [4, 6, 8], "num_workers": [0]}
    done = autotune_run(*study(script=script, axes=axes, sampler="auto", confirm_rounds=2))
    assert done.returncode == 0, done.stderr
    assert "forked trials mislead: batch 8, workers 0 ran at" in done.stdout
    assert "they count no longer, and the search goes on in fresh processes" in done.stdout
    assert "with 0 % probability" not in done.stdout
    chosen = read_best_config(Path("best_config.yaml")).config
    assert chosen.batch_size != 8
    # It was confirmed again; and whoever asks the storage is told the same.
    assert len(trials().query("phase == 'confirm' and batch_size == 4")) >= 2
    assert f"chosen:   {chosen.summary}" in autotune_here(command="show").stdout
