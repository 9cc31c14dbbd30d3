"""Energy counters, in a directory like the kernel's."""

import dataclasses

import pytest

from autotune.measurement import summarise
from autotune.system.energy import EnergyMeter

from ..made_up import PLAIN, block, sample

RANGE_UJ = 1_000_000_000


@pytest.fixture
def powercap(tmp_path):
    """Writes a zone with a counter; what the kernel has for one package."""

    def write(zone, name, energy_uj):
        directory = tmp_path / "sys/class/powercap" / zone
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "name").write_text(f"{name}\n")
        (directory / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (directory / "energy_uj").write_text(f"{energy_uj}\n")

    write.root = tmp_path
    return write


def used_j(powercap, before, after):
    """Joules between two states of all zones, as (zone, name): microjoules."""
    for (zone, name), energy_uj in before.items():
        powercap(zone, name, energy_uj)
    meter = EnergyMeter(powercap.root)
    start = meter.read()
    for (zone, name), energy_uj in after.items():
        powercap(zone, name, energy_uj)
    return meter.used_j(start, meter.read())


def test_packages_and_memory_are_summed_and_what_is_part_of_them_is_not(powercap):
    zones = [
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:0:1", "dram"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ]
    before = dict.fromkeys(zones, 5_000_000)
    used = (1_000_000, 700_000, 200_000, 2_000_000, 9_000_000, 1_000_000)
    after = {zone: 5_000_000 + uj for zone, uj in zip(zones, used, strict=True)}
    assert used_j(powercap, before, after) == pytest.approx(3.2)


def test_a_counter_that_began_again_counts_on(powercap):
    zone = ("intel-rapl:0", "package-0")
    assert used_j(powercap, {zone: RANGE_UJ - 500_000}, {zone: 250_000}) == pytest.approx(0.75)


def test_a_machine_that_does_not_tell_is_no_error(powercap):
    assert used_j(powercap, {}, {}) is None
    zone = ("intel-rapl:0", "package-0")
    assert used_j(powercap, {zone: ""}, {zone: ""}) is None
    # Readable at first, and not later.
    assert used_j(powercap, {zone: 1}, {zone: "?"}) is None


def test_a_trial_states_energy_per_sample_where_every_block_has_it():
    told = block(num_samples=40, energy_j=8.0)
    assert summarise([sample(told, told)], PLAIN).joules_per_sample == pytest.approx(0.2)
    untold = dataclasses.replace(told, energy_j=None)
    assert summarise([sample(told, untold)], PLAIN).joules_per_sample is None


def test_energy_per_sample_includes_what_the_gpus_used():
    both = block(num_samples=40, energy_j=8.0, gpu_energy_j=20.0)
    found = summarise([sample(both, both)], PLAIN)
    assert found.joules_per_sample == pytest.approx(0.7)
    assert found.gpu_joules_per_sample == pytest.approx(0.5)


def test_energy_of_the_gpus_alone_is_told_where_the_processors_do_not_tell():
    gpu_only = block(num_samples=40, gpu_energy_j=20.0)
    found = summarise([sample(gpu_only, gpu_only)], PLAIN)
    assert found.joules_per_sample == found.gpu_joules_per_sample == pytest.approx(0.5)


def test_energy_of_the_gpus_counts_where_every_block_has_it():
    told = block(num_samples=40, energy_j=8.0, gpu_energy_j=20.0)
    untold = dataclasses.replace(told, gpu_energy_j=None)
    found = summarise([sample(told, untold)], PLAIN)
    assert found.joules_per_sample == pytest.approx(0.2)
    assert found.gpu_joules_per_sample is None
