"""A `pynvml` that tells what a test says, and a torch that says that it uses those GPUs."""

import dataclasses
import functools
import os
import types

GIB = 2**30


class NVMLError(Exception):
    """What every function of NVML raises."""


@dataclasses.dataclass
class FakePart:
    """A MIG part of a GPU."""

    uuid: str
    profile: str = "1g.10gb"
    memory_bytes: int = 10 * GIB


@dataclasses.dataclass
class FakeGpu:
    """A GPU; its readings can be changed while it is looked at."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    memory_bytes: int = 80 * GIB
    parts: list | None = None
    energy_mj: int = 5000
    reasons: int = 0
    # (at_us, percent) of the whole, and (pid, at_us, percent) of processes.
    samples: list = dataclasses.field(default_factory=list)
    process_samples: list = dataclasses.field(default_factory=list)
    running: tuple = (os.getpid(),)


class FakeNvml(types.ModuleType):
    """Stands for the module `pynvml`.

    Attributes:
        gpus: What there is, by PCI bus.
        fails: Names of functions that raise NVMLError.
        calls: Names of the functions that were called.
    """

    NVMLError = NVMLError

    def __init__(self, *gpus):
        super().__init__("pynvml")
        self.gpus = list(gpus)
        self.fails = set()
        self.calls = []

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        return functools.partial(self._call, name, found) if name.startswith("nvml") else found

    def _call(self, name, function, *arguments):
        self.calls.append(name)
        return _fail() if name in self.fails else function(*arguments)

    def nvmlInit(self):
        pass

    def nvmlShutdown(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return "550.54.14"

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.gpus[index] or _fail()

    def nvmlDeviceGetHandleByUUID(self, uuid):
        whole = [gpu for gpu in self.gpus if gpu.uuid == uuid]
        parts = [part for gpu in self.gpus for part in gpu.parts or () if part.uuid == uuid]
        return (whole or parts or [None])[0] or _fail()

    def nvmlDeviceGetName(self, device):
        if isinstance(device, FakePart):
            return f"NVIDIA H100 80GB HBM3 MIG {device.profile}"
        return device.name

    def nvmlDeviceGetUUID(self, device):
        return device.uuid

    def nvmlDeviceGetMemoryInfo(self, device):
        return types.SimpleNamespace(total=device.memory_bytes)

    def nvmlDeviceGetMigMode(self, device):
        enabled = int(device.parts is not None)
        return [enabled, enabled]

    def nvmlDeviceGetMaxMigDeviceCount(self, device):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index):
        return device.parts[index] if index < len(device.parts) else _fail()

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part):
        return next(gpu for gpu in self.gpus if part in (gpu.parts or ()))

    def nvmlDeviceGetAttributes(self, part):
        return types.SimpleNamespace(
            computeInstanceSliceCount=1, gpuInstanceSliceCount=2, memorySizeMB=20 * 1024
        )

    def nvmlDeviceGetTotalEnergyConsumption(self, device):
        return device.energy_mj if isinstance(device, FakeGpu) else _fail()

    def nvmlDeviceGetCurrentClocksEventReasons(self, device):
        return device.reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device):
        return device.reasons

    def nvmlDeviceGetSamples(self, device, kind, since_us):
        if isinstance(device, FakePart) or kind != 1:
            _fail()
        found = [
            types.SimpleNamespace(timeStamp=at_us, sampleValue=types.SimpleNamespace(uiVal=percent))
            for at_us, percent in device.samples
            if at_us > since_us
        ]
        return 1, found or _fail()

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        return [types.SimpleNamespace(pid=pid) for pid in device.running]

    def nvmlDeviceGetProcessUtilization(self, device, since_us):
        if isinstance(device, FakePart):
            _fail()
        return [
            types.SimpleNamespace(pid=pid, timeStamp=at_us, smUtil=percent)
            for pid, at_us, percent in device.process_samples
        ] or _fail()


def _fail():
    raise NVMLError


class FakeTorch(types.ModuleType):
    """Stands for the module `torch`, as far as GPUs go.

    Args:
        used: UUIDs of the devices that hold memory; None for a torch that tells no UUIDs.
        visible: UUIDs of all devices.
    """

    def __init__(self, used, visible=None):
        super().__init__("torch")
        visible = visible or used or ()
        self.initialised = True

        def properties(index):
            plain = visible[index].removeprefix("GPU-").removeprefix("MIG-")
            return types.SimpleNamespace(**({} if used is None else {"uuid": plain}))

        self.cuda = types.SimpleNamespace(
            is_initialized=lambda: self.initialised,
            device_count=lambda: len(visible),
            memory_reserved=lambda index: int(visible[index] in (used or ())),
            current_device=lambda: 0,
            get_device_properties=properties,
        )
