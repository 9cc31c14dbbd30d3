import dataclasses
import platform
import warnings

import pytest
import yaml

import autotune
from autotune import BadInputError, ConfigError, StaleSettingsWarning, ThroughputConfig
from autotune.best_config import (
    BaselinePerformance,
    BestConfig,
    MachineRecord,
    Performance,
    Speedup,
    StudyRecord,
    read_best_config,
    write_best_config,
)
from autotune.system.gpus import Gpu
from autotune.system.machine import this_machine

FIGURES = {
    "unit": "samples",
    "units_per_s": 20.0,
    "samples_per_s": 20.123456789,
    "samples_per_s_low": 19.0,
    "samples_per_s_high": 21.0,
    "seconds_per_step": 0.4,
    "seconds_per_optimizer_step": 0.4,
    "cpu_utilisation": 0.9,
    "cpu_s_per_sample": 0.05,
    "shared_memory_bytes": 2**20,
    "device_memory_bytes": None,
    "wait_cpu_share": 0.1,
    "joules_per_sample": None,
    "gpu_joules_per_sample": None,
    "gpu_utilisation": None,
    "samples_per_update": 64.0,
    "data_wait_share": 0.01,
    "peak_memory_bytes": 2**30,
}


def make_best():
    """A whole file's content."""
    return BestConfig(
        config=ThroughputConfig(batch_size=8, gradient_accumulation_steps=2, num_threads=1),
        expected=Performance(**FIGURES),
        baseline=BaselinePerformance(**FIGURES, config=ThroughputConfig(batch_size=2)),
        speedup=Speedup(ratio=2.0, low=1.8, high=2.2, significant=True),
        machine=MachineRecord.of(this_machine()),
        study=StudyRecord(
            storage="sqlite:///x.db",
            name="x",
            trial_numbers=(1, 2),
            command="autotune run -- python 'a\nb.py'",
            date="2026-11-23T10:00:00+00:00",
            versions={"python": platform.python_version()},
        ),
    )


@pytest.fixture
def best():
    return make_best()


@pytest.fixture
def path(tmp_path, best):
    path = tmp_path / "best_config.yaml"
    write_best_config(path, best)
    return path


def change(path, keys, value):
    data = yaml.safe_load(path.read_text())
    *parents, last = keys.split(".")
    inner = data
    for key in parents:
        inner = inner[key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(yaml.safe_dump(data))


def test_what_is_written_is_read_again(path, best):
    found = read_best_config(path)
    assert found.config == best.config
    assert found.study == best.study
    assert found.expected.samples_per_s == pytest.approx(20.1235)


def test_a_file_from_before_a_setting_was_there_is_read(path, best):
    for name in ("in_order", "multiprocessing_context", "cudnn_benchmark", "matmul_precision"):
        change(path, f"config.{name}", KeyError)
        change(path, f"baseline.config.{name}", KeyError)
    assert read_best_config(path).config == best.config


def test_the_file_has_the_documented_keys_and_comments(path):
    data = yaml.safe_load(path.read_text())
    assert list(data) == [
        "schema_version",
        "config",
        "expected",
        "baseline",
        "speedup",
        "machine",
        "study",
        "workload",
    ]
    assert list(data["config"]) == [
        "batch_size",
        "gradient_accumulation_steps",
        "num_workers",
        "prefetch_factor",
        "persistent_workers",
        "pin_memory",
        "num_threads",
        "num_interop_threads",
        "gc",
        "malloc",
        "in_order",
        "multiprocessing_context",
        "cudnn_benchmark",
        "matmul_precision",
        "num_ranks",
        "ranks_per_node",
    ]
    assert set(data["baseline"]) == {*FIGURES, "config"}
    assert "# The settings." in path.read_text()


def test_a_collector_that_was_chosen_is_written_and_read(tmp_path, best):
    path = tmp_path / "best_config.yaml"
    chosen = dataclasses.replace(best.config, gc="frozen")
    write_best_config(path, dataclasses.replace(best, config=chosen))
    assert read_best_config(path).config == chosen
    assert "gc: frozen" in path.read_text()


def test_a_file_from_before_there_was_a_collector_is_read(path, best):
    change(path, "config.gc", KeyError)
    assert read_best_config(path).config == best.config


def test_training_reads_the_settings_and_sets_the_threads(path):
    import torch

    before = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config = autotune.load_config(path, default=ThroughputConfig(batch_size=2))
        assert config.batch_size == 8
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_effective_batch_of_the_script_wins_over_the_file(path):
    default = ThroughputConfig(batch_size=2)
    found = autotune.load_config(path, default=default, effective_batch_size=64)
    assert found.gradient_accumulation_steps == 8
    with pytest.raises(ConfigError, match="batch_size must divide"):
        autotune.load_config(path, default=default, effective_batch_size=20)


def test_without_a_file_the_default_is_used(tmp_path):
    default = ThroughputConfig(batch_size=2)
    assert autotune.load_config(None, default=default) == default
    assert autotune.load_config(tmp_path / "none.yaml", default=default) == default


def test_another_machine_gives_a_warning(path):
    change(path, "machine.fingerprint", "0123456789ab")
    with pytest.warns(StaleSettingsWarning, match="tuned under other conditions"):
        autotune.load_config(path, default=ThroughputConfig(batch_size=2))


def test_another_version_gives_a_warning(path):
    change(path, "study.versions.python", "3.1.4")
    with pytest.warns(StaleSettingsWarning, match="python: 3.1.4, here 3"):
        autotune.load_config(path, default=ThroughputConfig(batch_size=2))


class Loader(list):
    """What a loader tells of its data."""

    dataset = range(50)


@pytest.fixture(autouse=True)
def nothing_loaded():
    """As a training that has just begun."""
    autotune.api._tuned.clear()
    yield
    autotune.api._tuned.clear()


class SequentialSampler:
    """What torch's is called, which evaluations have."""


def test_an_evaluation_before_the_training_is_not_compared(path):
    change(path, "workload.samples_per_epoch", 50)
    autotune.load_config(path, default=ThroughputConfig(batch_size=2))
    evaluated = Loader()
    evaluated.dataset, evaluated.sampler = range(10), SequentialSampler()
    assert autotune.steps(evaluated) is evaluated
    assert autotune.api._tuned


def test_a_loader_that_cannot_tell_its_length_does_no_harm(path):
    class Broken(list):
        @property
        def dataset(self):
            raise RuntimeError("not now")

    change(path, "workload.samples_per_epoch", 50)
    autotune.load_config(path, default=ThroughputConfig(batch_size=2))
    assert autotune.steps(Broken()) == []


@pytest.mark.parametrize(("tuned_with", "warns"), [(100, True), (48, False), (None, False)])
def test_data_of_another_size_give_a_warning_once(path, tuned_with, warns):
    change(path, "workload.samples_per_epoch", tuned_with)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        autotune.load_config(path, default=ThroughputConfig(batch_size=2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = Loader()
        assert autotune.steps(loader) is loader
        autotune.steps(loader)
    assert [f"{tuned_with}, here 50" in str(warning.message) for warning in caught] == [
        True
    ] * warns


H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30)
A100 = Gpu(name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * 2**30)
SMALL_A100 = dataclasses.replace(A100, memory_bytes=40 * 2**30)
BY_PROC = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=None)
PART = dataclasses.replace(H100, mig_profile="7g.80gb")


def load_on(path, monkeypatch, best, *, before, now):
    """Load a file that was tuned with the GPUs `before`; gives the warnings.

    Both are pairs of the GPUs and the driver's version.
    """
    machine = dataclasses.replace(this_machine(), gpus=(), gpu_driver=None)
    tuned_on, here = (
        dataclasses.replace(machine, gpus=gpus, gpu_driver=driver) for gpus, driver in (before, now)
    )
    write_best_config(path, dataclasses.replace(best, machine=MachineRecord.of(tuned_on)))
    monkeypatch.setattr("autotune.system.machine.this_machine", lambda: here)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        autotune.load_config(path, default=ThroughputConfig(batch_size=2))
    return [str(warning.message).removeprefix(str(path)) for warning in caught]


@pytest.mark.parametrize(
    ("before", "now", "differences"),
    [
        (((H100,), "550"), ((), None), "GPUs: 1x {h100}, here none"),
        (((), None), ((H100,), "550"), "GPUs: none, here 1x {h100}"),
        (((H100,), "550"), ((A100,), "550"), "GPUs: 1x {h100}, here 1x {a100}"),
        (((H100,), "550"), ((H100, H100), "550"), "GPUs: 1x {h100}, here 2x {h100}"),
        (((A100,), "550"), ((SMALL_A100,), "550"), "GPUs: 1x {a100}, here 1x {small}"),
        (((H100,), "550"), ((PART,), "550"), "GPUs: 1x {h100}, here 1x {part}"),
        (((H100,), "550"), ((H100,), "535"), "GPU driver: 550, here 535"),
        (
            ((H100,), "550"),
            ((A100,), "535"),
            "GPUs: 1x {h100}, here 1x {a100}; GPU driver: 550, here 535",
        ),
        # Without NVML, /proc tells of names alone: of what it does not tell nothing is said.
        (((BY_PROC,), "550"), ((A100,), "550"), "GPUs: 1x NVIDIA H100 80GB HBM3, here 1x {named}"),
    ],
)
def test_another_gpu_gives_a_warning_that_names_it(
    path, monkeypatch, best, before, now, differences
):
    found = load_on(path, monkeypatch, best, before=before, now=now)
    named = {
        "h100": "NVIDIA H100 80GB HBM3 with 80 GiB",
        "part": "NVIDIA H100 80GB HBM3 MIG 7g.80gb with 80 GiB",
        "a100": "NVIDIA A100-SXM4-80GB with 80 GiB",
        "small": "NVIDIA A100-SXM4-80GB with 40 GiB",
        "named": "NVIDIA A100-SXM4-80GB",
    }
    told = differences.format(**named)
    assert found == [
        f" was tuned under other conditions ({told}): `autotune check` tells whether it still holds"
    ]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (((H100,), "550"), ((H100,), "550")),
        (((), None), ((), None)),
        # The same GPU, seen with NVML and without.
        (((H100,), "550"), ((BY_PROC,), "550")),
        (((BY_PROC,), "550"), ((PART,), "550")),
    ],
)
def test_the_same_gpus_give_no_warning(path, monkeypatch, best, before, now):
    assert load_on(path, monkeypatch, best, before=before, now=now) == []


def test_a_file_names_the_gpus_that_there_are_and_no_others(path, monkeypatch, best):
    gpus = (H100, PART)
    load_on(path, monkeypatch, best, before=(gpus, "550"), now=(gpus, "550"))
    machine = read_best_config(path).machine
    assert (machine.gpus, machine.gpu_driver) == (gpus, "550")
    load_on(path, monkeypatch, best, before=((), None), now=((), None))
    assert "gpu" not in yaml.safe_load(path.read_text())["machine"]


def test_unknown_keys_of_a_gpu_are_refused(path, monkeypatch, best):
    load_on(path, monkeypatch, best, before=((H100,), "550"), now=((H100,), "550"))
    data = yaml.safe_load(path.read_text())
    data["machine"]["gpus"][0]["colour"] = "green"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(BadInputError, match=r"gpus\.0\.colour is no known key"):
        read_best_config(path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("schema_version", 1, "schema_version must be 2, not 1"),
        ("config.batch_size", "8", r"config.batch_size: .*valid integer, not '8'"),
        ("config.batch_size", 0, "batch_size must be a whole number of at least 1, not 0"),
        ("config.gc", "off", "gc must be one of default, frozen, raised, not 'off'"),
        ("config.gc", True, "config.gc: .*valid string, not True"),
        ("config.batch_sizes", 8, "config.batch_sizes is no known key"),
        ("config", KeyError, "config is missing"),
        ("expected.samples_per_s", -1, "expected.samples_per_s: .*greater than 0, not -1"),
        ("expected.samples_per_s", float("nan"), "expected.samples_per_s"),
        ("speedup.significant", "yes", "speedup.significant: .*valid boolean"),
        ("study", [1], "study"),
        ("extra", 1, "extra is no known key"),
    ],
)
def test_an_edited_file_is_refused_with_key_value_and_rule(path, keys, value, message):
    change(path, keys, value)
    with pytest.raises(BadInputError, match=message) as caught:
        read_best_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a mapping"),
        ("- 1", "must hold a mapping"),
        ("a: [1", "not valid YAML"),
        ("a: 1\na: 2", "repeated key a"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("schema_version: 2", "is missing"),
        ("x: " + "y" * 2_000_000, "larger than"),
        ("a: " + "[" * 5000, "not valid YAML"),
    ],
)
def test_what_is_no_settings_file_is_refused(tmp_path, text, message):
    path = tmp_path / "best config\n.yaml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        read_best_config(path)


def test_binary_files_and_directories_are_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("x.yaml", ".", "none.yaml"):
        with pytest.raises(BadInputError, match="cannot be read"):
            read_best_config(tmp_path / name)


def test_a_failed_write_leaves_the_old_file(path, best, monkeypatch):
    from pathlib import Path

    old = path.read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(BadInputError, match="cannot be written: full"):
        write_best_config(path, best)
    assert path.read_text() == old
    assert list(path.parent.iterdir()) == [path]
