from pathlib import Path

import pytest

from autotune.errors import BadInputError
from autotune.measurement import StartMode
from autotune.study.definition import (
    SamplerName,
    default_study_file,
    define_for_command,
    parse_duration,
    read_definition,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("3m", 180), ("1h30m", 5400), ("1h1m1s", 3661)],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text, source="x") == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "m", "3 m", "-3m", "1m1h", "inf", "nan", "1e3"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(BadInputError, match="x: must be a duration"):
        parse_duration(text, source="x")


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        Path("a study.yaml").write_text(text)
        return Path("a study.yaml")

    return write


def test_a_study_file_is_read_and_the_command_line_wins(study_file):
    path = study_file(
        "name: s\ncommand: python 'my train.py' --x 1\nbudget: 2m\nstart_mode: fresh\n"
        "training: 20 epochs\n"
        "axes: {batch_size: [2, 4], num_workers: [0]}\n"
    )
    overrides = {"axes": {"batch_size": [8]}, "sampler": "tpe", "seed": 3}
    found = read_definition(path, overrides)
    assert found.command == ("python", "my train.py", "--x", "1")
    assert found.budget_s == 120
    assert str(found.training) == "20 epochs"
    assert found.start_mode is StartMode.FRESH
    assert found.axes == {"batch_size": (8,), "num_workers": (0,)}
    assert (found.sampler, found.seed) == (SamplerName.TPE, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s\n", "command is missing"),
        ("name: s\ncommand: []\n", "command: must name a program"),
        ('name: s\ncommand: "\'x"\n', "command: No closing quotation"),
        ("name: 's/../x'\ncommand: x\n", "name: "),
        ("name: s\ncommand: x\nbudget: soon\n", "a study.yaml: budget: must be a duration"),
        ("name: s\ncommand: x\ntraining: long\n", "a study.yaml: training: must be a length"),
        ("name: s\ncommand: x\nblock_s: 0\n", "block_s: .*greater than 0, not 0"),
        ("name: s\ncommand: x\nblock_s: '1'\n", "block_s: .*valid number, not '1'"),
        ("name: s\ncommand: x\naxes: {batch: [1]}\n", "axis batch: unknown"),
        ("name: s\ncommand: x\naxes: {batch_size: 3}\n", "axes.batch_size: .*not 3"),
        ("name: s\ncommand: x\naxes: [3]\n", "axes: "),
        ("name: s\ncommand: x\nsampler: magic\n", "sampler: .*not 'magic'"),
        ("name: s\ncommand: x\nconfirm_rounds: 0\n", "confirm_rounds"),
        ("name: s\ncommand: x\nspeed: 3\n", "speed is no known key"),
        ("name: s\ncommand: x\nstart_mode: swap\n", "start_mode: must be fork or fresh, not swap"),
        ("name: s\ncommand: x\ngpu_headroom: 1\n", "gpu_headroom: .*less than 1, not 1"),
    ],
)
def test_a_bad_study_file_is_refused_with_key_value_and_rule(study_file, text, message):
    with pytest.raises(BadInputError, match=message) as caught:
        read_definition(study_file(text), {})
    assert "a study.yaml" in str(caught.value)


def test_studies_of_commands_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = define_for_command(("python", "dir/my train.py", "--x", "1"), {})
    two = define_for_command(("python", "dir/my train.py", "--x", "2"), {})
    assert one.name.startswith("my_train-")
    assert one.name != two.name
    assert define_for_command(("./run",), {}).name.startswith("run-")
    assert define_for_command(("…",), {}).name.startswith("study-")


def test_the_program_is_resolved_and_python_is_this_one():
    import sys

    assert define_for_command(("python", "x"), {}).runnable_command == (sys.executable, "x")
    assert define_for_command(("sh", "x"), {}).runnable_command[0].endswith("/sh")
    with pytest.raises(BadInputError, match="no-such-program is no program"):
        _ = define_for_command(("no-such-program",), {}).runnable_command


def test_the_default_study_is_found_or_explained(tmp_path):
    assert default_study_file(tmp_path) is None
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text("[tool.other]\n")
    assert default_study_file(tmp_path) is None
    pyproject.write_text('[tool.autotune]\nstudy = "studies/x.yaml"\n')
    assert default_study_file(tmp_path) == tmp_path / "studies/x.yaml"
    pyproject.write_text("[tool.autotune]\nstudy = 3\n")
    with pytest.raises(BadInputError, match="tool.autotune.study must be a path, not 3"):
        default_study_file(tmp_path)
    pyproject.write_text("[tool")
    with pytest.raises(BadInputError, match="cannot be read"):
        default_study_file(tmp_path)


def test_the_study_of_this_project_is_sound():
    root = Path(__file__).parents[3]
    path = default_study_file(root)
    assert path is not None
    assert read_definition(path, {}).command[:3] == ("python", "-m", "mm_rec.train")
