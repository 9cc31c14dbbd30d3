"""What `python -m autotune` says to input and commands that cannot be used."""

import json
from pathlib import Path

import pytest

import autotune

from ..commands import autotune_here, autotune_run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--no-such-flag",), "No such option"),
        (("--axis", "batch_size"), "must look like batch_size=2,4,8"),
        (("--axis", "batch=1"), "axis batch: unknown"),
        (("--axis", "batch_size=1", "--axis", "batch-size=2"), "batch_size is given twice"),
        (("--storage", "none/there/x.db"), "none/there/x.db: cannot be written"),
        (("--axis", "batch_size=0"), "at least 1, not 0"),
        (("--axis", "batch_size=many"), "must look like batch_size=2,4,8"),
        (("--axis", "gc=default,off"), "axis gc: gc must be one of default, frozen, raised, not"),
        (("--axes", "all"), "'--axes': 'all' is not one of 'default', 'extended'"),
        (("--budget", "soon"), "--budget: must be a duration"),
        (("--budget", "0"), "--budget: must be a duration"),
        (("--sampler", "magic"), "magic"),
        (("--seed", "99999999999"), "99999999999"),
        (("--study", "none.yaml"), "none.yaml: cannot be read"),
        (("--study", "bad.yaml"), "bad.yaml: not valid YAML"),
        (("--study", "unknown.yaml"), "bugdet is no known key"),
        (("--", "no-such-program", "x"), "no-such-program is no program"),
        (("--out", "/proc/none/x.yaml"), "/proc/none/x.yaml: cannot be written"),
        (("--out", "."), "is a directory"),
        (("--out", "none/x.yaml"), "there is no directory none"),
        (("--storage", "nosuchdb://x/y"), "storage nosuchdb://x/y: cannot be opened"),
        (("--storage", "quick.yaml"), "cannot be opened"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(study, options, message):
    study_options = study()
    Path("bad.yaml").write_text("command: [")
    Path("unknown.yaml").write_text("command: python x.py\nbugdet: 3m\n")
    Path("best_config.yaml").write_text("mine")
    if "--study" not in options and "--" not in options:
        options = (*study_options, *options)
    done = autotune_here(*options, command="run")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert Path("best_config.yaml").read_text() == "mine"


def test_the_command_line_wins_over_the_study_file(study):
    done = autotune_run(*study(sampler="tpe"), "--sampler", "auto", "--json", command="doctor")
    assert json.loads(done.stdout)["sampler"] == "auto"


def test_without_a_command_there_is_nothing_to_tune(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = autotune_here(command="run")
    assert done.returncode == 2
    assert "nothing to tune: give a command" in done.stderr


def test_the_default_study_is_the_one_that_pyproject_names(study):
    study()
    Path("pyproject.toml").write_text('[tool.autotune]\nstudy = "quick.yaml"\n')
    done = autotune_run(command="doctor")
    assert done.returncode == 0
    assert "train it.py" in done.stdout


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"before": "sys.exit(0)"}, "ended without calling autotune.load_config"),
        ({"before": "import no_such_module"}, "No module named 'no_such_module'"),
        ({"load": "); sys.exit(0"}, "ended without calling autotune.steps"),
        ({"step": "sys.exit(0)"}, "too few to be measured"),
        ({"length": 0}, "the loader delivered no batch"),
        ({"step": "raise ValueError('x')"}, "ValueError: x"),
    ],
)
def test_a_command_that_cannot_be_measured_is_exit_code_1(study, script, message):
    options = study(script=script)
    Path("best_config.yaml").write_text("mine")
    done = autotune_run(*options)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert "autotune/cli.py" not in done.stderr
    assert Path("best_config.yaml").read_text() == "mine"


def test_a_study_without_a_measurement_can_be_shown(study):
    assert autotune_run(*study(script={"step": "raise ValueError('x')"})).returncode == 1
    shown = autotune_here(command="show")
    assert "study quick" in shown.stdout


def test_a_study_of_another_command_is_not_mixed_in(study):
    axes = {"batch_size": [4], "num_workers": [0]}
    assert autotune_run(*study(axes=axes)).returncode == 0
    options = study(
        script={"load": ", effective_batch_size=8"},
        seed=1,
        axes={"batch_size": [2, 8], "num_workers": [0]},
    )
    done = autotune_run(*options)
    assert done.returncode == 2
    assert "start another study with --fresh" in done.stderr


def test_show_and_load_study_explain_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = autotune_here(command="show")
    assert done.returncode == 2
    assert "there is no such file" in done.stderr
    with pytest.raises(autotune.BadInputError, match="there is no such file"):
        autotune.load_study("none.db")
    assert not list(tmp_path.iterdir())


def test_options_after_the_command_are_its_own_with_or_without_dashes(light_script):
    program = light_script()
    for dashes in ((), ("--",)):
        done = autotune_run(*dashes, *program, "--seed", "5", "--quiet", command="doctor")
        assert done.returncode == 0, done.stderr
        assert "train it.py' --seed 5 --quiet" in done.stdout
