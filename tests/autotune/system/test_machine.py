import dataclasses
import hashlib
import os

import pytest

from autotune.system.gpus import FoundGpus, Gpu
from autotune.system.machine import Machine, affinity, this_machine, usable_cores

GIB = 2**30
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB)
PLAIN = Machine(
    cpu="A CPU", usable_cores=16, memory_bytes=128 * GIB, system="Linux x86_64", hostname="h"
)
WITH_GPU = dataclasses.replace(PLAIN, gpus=(H100,), gpu_driver="550.54.14")


def test_the_cores_are_those_that_this_process_may_run_on():
    assert affinity() == os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(affinity())
    assert this_machine().usable_cores == usable_cores()


def test_the_fingerprint_changes_with_what_matters_and_nothing_else():
    here = this_machine()
    assert dataclasses.replace(here, hostname="elsewhere").fingerprint == here.fingerprint
    assert dataclasses.replace(here, usable_cores=99).fingerprint != here.fingerprint
    assert dataclasses.replace(here, cpu="another").fingerprint != here.fingerprint
    assert dataclasses.replace(here, memory_bytes=2**30).fingerprint != here.fingerprint


def test_without_a_gpu_the_fingerprint_is_made_of_the_same_facts_as_ever():
    facts = "A CPU|16|128|Linux x86_64"
    assert PLAIN.fingerprint == hashlib.sha256(facts.encode()).hexdigest()[:12]
    assert str(PLAIN) == "A CPU, 16 usable cores, 128 GiB, Linux x86_64"


@pytest.mark.parametrize(
    "changes",
    [
        {"gpus": (), "gpu_driver": None},
        {"gpus": (H100, H100)},
        {"gpus": (dataclasses.replace(H100, name="NVIDIA H200"),)},
        {"gpus": (dataclasses.replace(H100, memory_bytes=94 * GIB),)},
        {"gpus": (dataclasses.replace(H100, mig_profile="7g.80gb"),)},
        {"gpu_driver": "535.129.03"},
    ],
)
def test_the_fingerprint_changes_with_the_gpus_and_their_driver(changes):
    assert dataclasses.replace(WITH_GPU, **changes).fingerprint != WITH_GPU.fingerprint


def test_the_fingerprint_counts_gpu_memory_in_whole_gib():
    a_little_less = dataclasses.replace(H100, memory_bytes=80 * GIB - 2**20)
    assert dataclasses.replace(WITH_GPU, gpus=(a_little_less,)).fingerprint == WITH_GPU.fingerprint


def test_a_machine_names_its_gpus():
    assert str(WITH_GPU).endswith(", Linux x86_64, 1x NVIDIA H100 80GB HBM3")
    assert "2x NVIDIA H100 80GB HBM3" in str(dataclasses.replace(WITH_GPU, gpus=(H100, H100)))


def test_the_gpus_that_are_found_are_those_of_this_machine(monkeypatch):
    found = FoundGpus(gpus=(H100,), driver="550.54.14")
    monkeypatch.setattr("autotune.system.machine.find_gpus", lambda: found)
    machine = this_machine.__wrapped__()
    assert (machine.gpus, machine.gpu_driver) == (found.gpus, found.driver)
