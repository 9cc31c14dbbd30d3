"""Which settings file counts on a machine."""

import dataclasses
import warnings

import pytest

from autotune import BadInputError, StaleSettingsWarning, ThroughputConfig, load_config
from autotune.best_config import MachineRecord, read_settings, write_best_config
from autotune.settings_files import file_of_kind, settings_exist
from autotune.system.gpus import Gpu
from autotune.system.machine import this_machine

from .test_best_config import make_best

DEFAULT = ThroughputConfig(batch_size=1)
HERE = this_machine()
A100 = Gpu(name="NVIDIA A100", memory_bytes=80 * 2**30)
H100 = Gpu(name="NVIDIA H100", memory_bytes=80 * 2**30)


def keep(folder, machine, batch_size, *, as_file=False):
    """Settings of a machine, in the folder of all kinds or as the file beside it."""
    path = folder / "best_config.yaml"
    place = path if as_file else file_of_kind(path, machine.kind)
    place.parent.mkdir(exist_ok=True)
    best = dataclasses.replace(
        make_best(),
        config=ThroughputConfig(batch_size=batch_size),
        machine=MachineRecord.of(machine),
    )
    write_best_config(place, best)


def variant(**changes):
    return dataclasses.replace(HERE, **changes)


def test_the_file_of_the_own_kind_counts_before_the_one_beside_it(tmp_path):
    path = tmp_path / "best_config.yaml"
    assert not settings_exist(path)
    assert load_config(path, default=DEFAULT) == DEFAULT
    keep(tmp_path, variant(usable_cores=HERE.usable_cores + 1), 2)
    keep(tmp_path, HERE, 4)
    keep(tmp_path, HERE, 8, as_file=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_config(path, default=DEFAULT).batch_size == 4
        assert load_config(tmp_path / "best_config.d", default=DEFAULT).batch_size == 4


def test_where_no_kind_is_the_same_the_nearest_counts_with_a_warning(tmp_path):
    path = tmp_path / "best_config.yaml"
    keep(tmp_path, variant(usable_cores=16 * HERE.usable_cores), 2)
    keep(tmp_path, variant(usable_cores=2 * HERE.usable_cores), 4)
    keep(tmp_path, variant(gpus=(A100,)), 8)
    with pytest.warns(StaleSettingsWarning, match="usable cores: .*, here"):
        assert load_config(path, default=DEFAULT).batch_size == 4


@pytest.mark.parametrize(
    ("here", "batch_size"),
    [
        (variant(gpus=(H100, H100)), 8),
        (variant(gpus=(A100,) * 8), 4),
        (variant(gpus=(H100,) * 8, usable_cores=1), 8),
        (variant(cpu="another"), 2),
    ],
)
def test_the_same_gpus_count_more_than_the_same_cores(tmp_path, here, batch_size):
    keep(tmp_path, variant(), 2)
    keep(tmp_path, variant(gpus=(A100,) * 4), 4)
    keep(tmp_path, variant(gpus=(H100,) * 4, usable_cores=64), 8)
    _, best = read_settings(tmp_path / "best_config.yaml", here)
    assert best.config.batch_size == batch_size


def test_a_broken_file_of_the_own_kind_is_refused_by_name(tmp_path):
    keep(tmp_path, HERE, 4)
    path = file_of_kind(tmp_path / "best_config.yaml", HERE.kind)
    path.write_text("config: 3\n")
    with pytest.raises(BadInputError, match=path.name):
        load_config(tmp_path / "best_config.yaml", default=DEFAULT)


def test_a_kind_is_a_name_that_tells_machines_apart():
    kinds = {
        machine.kind
        for machine in (
            *(HERE, variant(usable_cores=3), variant(memory_bytes=2**40), variant(cpu="another")),
            *(variant(gpus=(A100,)), variant(gpus=(A100, A100)), variant(gpus=(H100,))),
        )
    }
    assert len(kinds) == 7
    assert variant(hostname="another").kind == HERE.kind
    assert all(kind == kind.lower() and "/" not in kind and "@" not in kind for kind in kinds)
