"""An accelerator seen through torch, with a fake one; and what forks do not survive."""

import ctypes
import subprocess
import sys
import types

import pytest
import torch

from autotune.instrument import accelerator
from autotune.instrument.accelerator import Accelerator, StallClock

from .. import fake_gpu
from ..fake_gpu import GIB


@pytest.fixture
def gpu(monkeypatch):
    """A fake GPU that nothing has used yet."""
    monkeypatch.setattr(fake_gpu, "STATE", fake_gpu.State())
    fake_gpu.install(monkeypatch.setattr)
    return fake_gpu


def test_without_a_gpu_there_is_nothing_to_wait_for_and_nothing_to_tell():
    found = Accelerator()
    found.synchronise()
    assert found.memory() == ()
    assert not found.is_used
    assert found.stall_clock() is None
    assert accelerator.fork_obstacle() is None


def test_a_gpu_that_is_there_but_not_used_is_left_alone(gpu):
    found = Accelerator()
    found.synchronise()
    assert found.memory() == ()
    assert gpu.STATE.synchronised == []


def test_the_memory_of_a_gpu_counts_what_others_took(gpu):
    gpu.allocate(6 * GIB)
    gpu.allocate(2 * GIB)
    [memory] = Accelerator().memory()
    assert memory.reserved_bytes == memory.allocated_bytes == 6 * GIB
    # What was given back since is free now, and was not at the peak.
    assert memory.used_bytes == 7 * GIB
    assert memory.used_share == pytest.approx(0.7)
    assert memory.others_bytes == GIB


def test_what_uses_a_gpu_while_it_is_watched_is_waited_for(gpu):
    found = Accelerator()
    found.look()
    gpu.allocate(GIB)
    found.synchronise()
    assert gpu.STATE.synchronised == [0]


def test_a_driver_that_does_not_tell_what_is_free_is_taken_to_be_this_processs_alone(
    gpu, monkeypatch
):
    def refuse(_):
        raise RuntimeError("not supported")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * GIB)
    properties = types.SimpleNamespace(total_memory=8 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    gpu.allocate(3 * GIB)
    [memory] = Accelerator().memory()
    assert (memory.used_bytes, memory.total_bytes) == (3 * GIB, 8 * GIB)


def stalled_s(gpu, monkeypatch, *, device_s, host_s, num_steps=5):
    """Seconds that a device stood still, whose steps and whose batches take so long."""
    now = [100.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    gpu.use()
    clock = Accelerator()
    clock.look()
    clock = clock.stall_clock()
    clock.begin(step_s=max(device_s, host_s))
    for _ in range(num_steps):
        clock.ask()
        now[0] += host_s
        clock.get()
        gpu.launch(device_s)
    return clock.stalled_s()


def test_waiting_while_the_gpu_has_work_costs_nothing(gpu, monkeypatch):
    # The first batch alone is waited for by a device that has nothing to do.
    assert stalled_s(gpu, monkeypatch, device_s=0.1, host_s=0.03) == pytest.approx(0.03)


def test_a_gpu_that_has_done_its_work_stands_still(gpu, monkeypatch):
    found = stalled_s(gpu, monkeypatch, device_s=0.1, host_s=0.3)
    assert found == pytest.approx(0.3 + 4 * 0.2)


def test_of_very_short_steps_some_are_watched_and_stand_for_all(gpu, monkeypatch):
    found = stalled_s(gpu, monkeypatch, device_s=1e-5, host_s=1e-4, num_steps=1000)
    assert found == pytest.approx(1000 * 9e-5, rel=0.05)
    clock = StallClock(torch.cuda)
    clock.begin(1e-4)
    assert clock._every == 20


def test_what_is_initialised_already_cannot_be_forked(gpu):
    gpu.use()
    obstacle = accelerator.fork_obstacle()
    assert obstacle.startswith("CUDA is initialised when load_config is called: call it before")


@pytest.mark.parametrize(("code", "is_obstacle"), [(3, False), (0, True), (100, True)])
def test_a_driver_that_torch_did_not_initialise_is_seen(monkeypatch, code, is_obstacle):
    driver = types.SimpleNamespace(cuDeviceGetCount=lambda _: code)

    def load(name, mode):
        assert name == "libcuda.so.1"
        assert mode & accelerator.os.RTLD_NOLOAD
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert (accelerator.fork_obstacle() is not None) == is_obstacle


def test_importing_autotune_touches_no_gpu_and_no_torch():
    code = (
        "import sys, autotune.api, autotune.instrument.accelerator; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_graphs_that_torch_compiles_are_counted():
    code = """
import torch
from autotune.instrument.accelerator import num_compiled
assert num_compiled() == 0
step = torch.compile(lambda x: 2 * x + 1, backend="eager")
step(torch.ones(3))
step(torch.ones(3))
assert num_compiled() == 1, num_compiled()
step(torch.ones(5))
assert num_compiled() == 2, num_compiled()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
