"""What a training process reads of its GPUs, with an NVML and a torch that are made up."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from autotune.blocks import Interference
from autotune.system.counters import CounterReader
from autotune.system.gpu_meter import GpuMeter

from ..fake_nvml import FakeGpu, FakeNvml, FakePart, FakeTorch
from ..made_up import block

HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x08, 0x20, 0x40, 0x80
IDLE, SW_POWER_CAP = 0x01, 0x04
OWN, OTHER = (os.getpid(),), os.getppid()


@pytest.fixture
def root(tmp_path):
    """A root that a driver of NVIDIA's has written into."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    return tmp_path


@pytest.fixture
def machine(root, monkeypatch):
    """Installs such GPUs and a torch that uses some of them; gives meter and NVML."""

    def install(*gpus, used=("GPU-0",), **torch):
        module = FakeNvml(*gpus)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        monkeypatch.setitem(sys.modules, "torch", FakeTorch(used, **torch))
        return GpuMeter(root), module

    return install


class Clock:
    """A time that stands until it is moved on, in microseconds."""

    def __init__(self, monkeypatch):
        self.at_us = 1_000_000_000
        monkeypatch.setattr(time, "time_ns", lambda: 1000 * self.at_us)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def used(meter, clock, *, duration_us=250_000, change=lambda: None, own_pids=OWN):
    """What a block of that duration used; `change` happens while it runs."""
    start = meter.read()
    clock.at_us += duration_us
    change()
    return meter.used_between(start, meter.read(), own_pids)


def test_energy_is_summed_over_the_gpus_in_use(machine, clock):
    gpus = [FakeGpu("GPU-0"), FakeGpu("GPU-1"), FakeGpu("GPU-2")]
    meter, _ = machine(*gpus, used=("GPU-0", "GPU-2"), visible=("GPU-2", "GPU-1", "GPU-0"))

    def change():
        for gpu, used_mj in zip(gpus, (1500, 9000, 250), strict=True):
            gpu.energy_mj += used_mj

    assert used(meter, clock, change=change)["gpu_energy_j"] == pytest.approx(1.75)


def test_energy_is_unknown_where_a_gpu_does_not_tell_or_began_again(machine, clock):
    gpu = FakeGpu("GPU-0")
    meter, module = machine(gpu)
    assert used(meter, clock, change=lambda: setattr(gpu, "energy_mj", 3))["gpu_energy_j"] is None
    assert used(meter, clock)["gpu_energy_j"] == 0
    module.fails = {"nvmlDeviceGetTotalEnergyConsumption"}
    assert used(meter, clock)["gpu_energy_j"] is None


def samples(clock, *percents, first_us=-166_000, every_us=166_000):
    """Utilisation samples, the first of them so much after now."""
    return [
        (clock.at_us + first_us + number * every_us, percent)
        for number, percent in enumerate(percents)
    ]


def test_utilisation_is_that_of_the_windows_within_the_block(machine, clock):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    # Windows end at the block's start, within it, and long after its end.
    gpu.samples = samples(clock, 10, 20, 80, 40)
    found = used(meter, clock, duration_us=200_000)["gpu_utilisation"]
    assert found == pytest.approx(0.8)


def test_windows_that_reach_out_of_the_block_weigh_less(machine, clock):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    # From the block's start, one window lies within it by 0.1 s and the next one by all of 0.16 s.
    gpu.samples = samples(clock, 0, 50, 100, first_us=-60_000, every_us=160_000)
    found = used(meter, clock, duration_us=270_000)["gpu_utilisation"]
    assert found == pytest.approx((0.1 * 0.5 + 0.16 * 1.0) / 0.26)


def test_a_window_that_mostly_lies_before_the_block_does_not_count(machine, clock):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    gpu.samples = samples(clock, 0, 90, first_us=-100_000)
    assert used(meter, clock)["gpu_utilisation"] is None


def test_windows_longer_than_the_block_tell_nothing_of_it(machine, clock):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    gpu.samples = samples(clock, 70, 70, first_us=-900_000, every_us=1_000_000)
    assert used(meter, clock)["gpu_utilisation"] is None
    gpu.samples = samples(clock, 70, 70, 60, first_us=-1_000_000, every_us=1_000_000)
    assert used(meter, clock, duration_us=1_000_000)["gpu_utilisation"] == pytest.approx(0.6)


def test_utilisation_is_the_mean_of_the_gpus(machine, clock):
    gpus = [FakeGpu("GPU-0"), FakeGpu("GPU-1")]
    meter, _ = machine(*gpus, used=("GPU-0", "GPU-1"))
    gpus[0].samples = samples(clock, 0, 0, 100)
    gpus[1].samples = samples(clock, 0, 0, 50)
    assert used(meter, clock)["gpu_utilisation"] == pytest.approx(0.75)
    # What only one of them tells is not the mean.
    gpus[0].samples = samples(clock, 0, 0, 100)
    assert used(meter, clock)["gpu_utilisation"] is None


def test_values_that_cannot_be_are_left_out(machine, clock):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    gpu.samples = samples(clock, 0, 0, 4711)
    assert used(meter, clock)["gpu_utilisation"] is None


def others(meter, gpu, clock, pid, percent=30, *, delay_us=200_000, own_pids=OWN):
    """What others used in a block in which the GPU reports a sample of `pid`."""
    gpu.process_samples = [(os.getpid(), clock.at_us + 1000, 60)]
    gpu.process_samples.append((pid, clock.at_us + delay_us, percent))
    return used(meter, clock, own_pids=own_pids)


def test_the_kernels_of_another_process_disturb_and_the_trials_own_do_not(machine, clock):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    found = others(meter, gpu, clock, OTHER)
    assert found["gpu_other_utilisation"] == pytest.approx(0.3)
    assert block(**found).interference == (Interference.GPU_PROCESSES,)
    found = others(meter, gpu, clock, OTHER, own_pids=(os.getpid(), OTHER))
    assert found["gpu_other_utilisation"] == 0
    assert block(**found).interference == ()
    # A desktop, say.
    assert block(**others(meter, gpu, clock, OTHER, percent=3)).interference == ()


def test_the_gpu_that_others_use_most_counts(machine, clock):
    gpus = [FakeGpu("GPU-0"), FakeGpu("GPU-1")]
    meter, _ = machine(*gpus, used=("GPU-0", "GPU-1"))
    gpus[0].process_samples = [(OTHER, clock.at_us + 1, 10)]
    gpus[1].process_samples = [(OTHER, clock.at_us + 1, 50), (1, clock.at_us + 1, 20)]
    assert used(meter, clock)["gpu_other_utilisation"] == pytest.approx(0.7)


def test_where_nvml_does_not_know_this_process_by_its_number_nobody_is_another(machine, clock):
    # In a container, numbers may be the host's.
    gpu = FakeGpu("GPU-0", running=(OTHER,))
    meter, _ = machine(gpu)
    assert others(meter, gpu, clock, OTHER)["gpu_other_utilisation"] == 0


def test_a_process_that_cannot_be_seen_is_not_counted(machine, clock):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    assert others(meter, gpu, clock, pid=2**22 + 1)["gpu_other_utilisation"] == 0
    assert others(meter, gpu, clock, pid=0)["gpu_other_utilisation"] == 0


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def test_a_trial_that_stands_still_is_not_counted(machine, clock, sleeper):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    assert others(meter, gpu, clock, sleeper.pid)["gpu_other_utilisation"] > 0
    psutil.Process(sleeper.pid).suspend()
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
    assert others(meter, gpu, clock, sleeper.pid)["gpu_other_utilisation"] == 0
    psutil.Process(sleeper.pid).resume()


def test_samples_that_were_not_filled_in_are_left_out(machine, clock):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    assert others(meter, gpu, clock, OTHER, percent=4711)["gpu_other_utilisation"] == 0
    assert others(meter, gpu, clock, OTHER, delay_us=-1)["gpu_other_utilisation"] == 0
    assert others(meter, gpu, clock, OTHER, delay_us=10**9)["gpu_other_utilisation"] == 0


@pytest.mark.parametrize(
    ("before", "after", "disturbs"),
    [
        (0, HW_THERMAL, True),
        (SW_THERMAL, 0, True),
        (0, POWER_BRAKE | SW_POWER_CAP, True),
        # It is also told for a moment while clocks change.
        (HW_SLOWDOWN, IDLE, False),
        (HW_SLOWDOWN, HW_SLOWDOWN, True),
        # Training meets these as well.
        (SW_POWER_CAP, SW_POWER_CAP, False),
        (IDLE, IDLE, False),
    ],
)
def test_clocks_slowed_by_heat_or_supply_disturb(machine, clock, before, after, disturbs):
    gpu = FakeGpu("GPU-0", reasons=before)
    meter, _ = machine(gpu)
    found = used(meter, clock, change=lambda: setattr(gpu, "reasons", after))
    assert block(**found).interference == ((Interference.GPU_CLOCKS,) if disturbs else ())


def test_the_older_name_of_the_reasons_is_asked_where_the_newer_one_fails(machine, clock):
    meter, module = machine(FakeGpu("GPU-0", reasons=HW_THERMAL))
    module.fails = {"nvmlDeviceGetCurrentClocksEventReasons"}
    assert used(meter, clock)["gpu_throttled"]


def test_a_mig_part_tells_only_of_the_clocks(machine, clock):
    gpu = FakeGpu("GPU-0", parts=[FakePart("MIG-1")], reasons=HW_THERMAL)
    for uuid in ("MIG-1", "GPU-0"):
        meter, _ = machine(gpu, used=(uuid,))
        assert used(meter, clock) == {
            "gpu_energy_j": None,
            "gpu_utilisation": None,
            "gpu_other_utilisation": 0,
            "gpu_throttled": True,
        }


def test_a_torch_that_tells_no_uuids_stands_for_all_visible_devices(machine, clock, monkeypatch):
    gpus = [FakeGpu("GPU-0"), FakeGpu("GPU-1")]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    meter, _ = machine(*gpus, used=None, visible=("GPU-0", "GPU-1"))
    assert meter.read().uuids == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    meter, _ = machine(*gpus, used=None, visible=("GPU-1",))
    assert meter.read().uuids == ("1",)


def test_without_memory_on_any_the_chosen_device_is_in_use(machine):
    meter, _ = machine(FakeGpu("GPU-0"), FakeGpu("GPU-1"), used=(), visible=("GPU-1", "GPU-0"))
    assert meter.read().uuids == ("1",)


def test_a_gpu_that_is_put_to_use_later_is_found(machine, clock):
    gpus = [FakeGpu("GPU-0"), FakeGpu("GPU-1")]
    meter, _ = machine(*gpus, visible=("GPU-0", "GPU-1"))
    start = meter.read()
    sys.modules["torch"].cuda.memory_reserved = lambda index: 1
    meter.find_devices()
    end = meter.read()
    assert (start.uuids, end.uuids) == (("0",), ("0", "1"))
    # Two different sets of counters have no difference.
    assert meter.used_between(start, end, ()) == {}


def test_before_torch_uses_a_gpu_nothing_is_asked(machine):
    meter, module = machine(FakeGpu("GPU-0"))
    torch = sys.modules["torch"]
    torch.initialised = False
    meter.find_devices()
    assert meter.read() is None
    assert module.calls == []
    torch.initialised = True
    assert meter.read() is not None


def test_without_torch_nothing_is_asked(machine, monkeypatch):
    meter, module = machine(FakeGpu("GPU-0"))
    monkeypatch.delitem(sys.modules, "torch")
    meter.find_devices()
    assert meter.read() is None
    assert module.calls == []


def test_without_nvml_nothing_is_known_and_it_is_not_looked_for_again(machine, clock):
    meter, module = machine(FakeGpu("GPU-0"))
    module.fails = {"nvmlInit"}
    assert used(meter, clock) == {}
    meter.find_devices()
    assert module.calls.count("nvmlInit") == 1


ASKED = {
    "nvmlInit",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetSamples",
    "nvmlDeviceGetProcessUtilization",
}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_an_error_of_nvml_leaves_its_figure_unknown_and_the_others_known(machine, clock, name):
    gpu = FakeGpu("GPU-0", samples=samples(clock, 0, 0, 80))
    gpu.process_samples = [(OTHER, clock.at_us + 1, 30)]
    meter, module = machine(gpu)
    module.fails = {name}
    found = used(meter, clock, change=lambda: setattr(gpu, "energy_mj", 6000))
    block(**found)
    if name in ("nvmlInit", "nvmlDeviceGetHandleByUUID"):
        assert found == {}
        return
    assert (found["gpu_energy_j"] is None) == (name == "nvmlDeviceGetTotalEnergyConsumption")
    assert (found["gpu_utilisation"] is None) == (name == "nvmlDeviceGetSamples")
    unseen = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetProcessUtilization")
    assert (found["gpu_other_utilisation"] == 0) == (name in unseen)


def test_every_function_that_is_asked_has_a_test_of_its_error(machine, clock):
    meter, module = machine(FakeGpu("GPU-0"))
    used(meter, clock)
    assert set(module.calls) == ASKED


def test_a_gpu_that_is_lost_within_a_block_leaves_it_unknown(machine, clock):
    meter, module = machine(FakeGpu("GPU-0", reasons=HW_THERMAL))
    start = meter.read()
    module.fails = {name for name in dir(FakeNvml) if name.startswith("nvml")}
    meter.find_devices()
    found = meter.used_between(start, meter.read(), ())
    assert (found["gpu_energy_j"], found["gpu_utilisation"]) == (None, None)


def test_of_gpus_that_nvml_knows_only_in_part_nothing_is_told(machine):
    meter, _ = machine(FakeGpu("GPU-0"), used=("GPU-0", "GPU-1"))
    assert meter.read() is None


def test_a_cuda_error_of_torch_is_no_failure(machine):
    meter, _ = machine(FakeGpu("GPU-0"))

    def fail(index):
        raise RuntimeError("CUDA error: device-side assert triggered")

    sys.modules["torch"].cuda.memory_reserved = fail
    meter.find_devices()
    assert meter.read().uuids == ("0",)


def test_a_block_is_given_what_its_gpus_used(machine, monkeypatch):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    monkeypatch.setattr("autotune.system.counters.GpuMeter", lambda: meter)
    reader = CounterReader(os.getpid())
    reader.find_processes()
    start = reader.read()
    gpu.energy_mj += 500
    found = reader.used_between(start, reader.read())
    assert found["gpu_energy_j"] == pytest.approx(0.5)
    assert block(**found).gpu_energy_j == pytest.approx(0.5)


def test_a_process_of_the_trial_is_not_another(machine, monkeypatch, sleeper):
    gpu = FakeGpu("GPU-0")
    meter, _ = machine(gpu)
    monkeypatch.setattr("autotune.system.counters.GpuMeter", lambda: meter)
    reader = CounterReader(os.getpid())
    reader.find_processes()
    start = reader.read()
    gpu.process_samples = [(sleeper.pid, start.gpu.at_us + 1, 50)]
    assert reader.used_between(start, reader.read())["gpu_other_utilisation"] == 0
    gpu.process_samples = [(OTHER, start.gpu.at_us + 1, 50)]
    assert reader.used_between(start, reader.read())["gpu_other_utilisation"] == 0.5


def test_a_machine_without_gpus_has_blocks_as_before():
    reader = CounterReader(os.getpid())
    found = reader.used_between(reader.read(), reader.read())
    assert not any(name.startswith("gpu") for name in found)
