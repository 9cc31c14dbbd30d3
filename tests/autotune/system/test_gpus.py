"""Which GPUs a process may use, in a directory like the root, with and without NVML."""

import subprocess
import sys

import pytest

from autotune.best_config import write_best_config
from autotune.system import gpus
from autotune.system.gpus import FoundGpus, Gpu, find_gpus, summary
from autotune.system.nvml import open_nvml

from ..fake_nvml import GIB, FakeGpu, FakeNvml, FakePart
from ..test_best_config import make_best

H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB)
A100 = Gpu(name="NVIDIA A100-SXM4-40GB", memory_bytes=40 * GIB)


@pytest.fixture
def root(tmp_path):
    """A root that a driver of NVIDIA's has written into."""
    directory = tmp_path / "proc/driver/nvidia"
    directory.mkdir(parents=True)
    (directory / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
    )
    start_with(tmp_path)
    return tmp_path


@pytest.fixture
def nvml(monkeypatch):
    """Installs a pynvml with such GPUs."""

    def install(*found):
        module = FakeNvml(*found)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


@pytest.fixture
def no_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)


def start_with(root, **environment):
    """Say what environment this process was started with."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name}={value}\0" for name, value in environment.items())
    (root / "proc/self/environ").write_text(text)


def write_proc(root, slot, uuid, name="NVIDIA H100 80GB HBM3", excluded="No", minor=0, device=True):
    """What the driver writes of a GPU, and its device file."""
    if device:
        (root / "dev").mkdir(exist_ok=True)
        (root / f"dev/nvidia{minor}").touch()
    directory = root / "proc/driver/nvidia/gpus" / slot
    directory.mkdir(parents=True)
    (directory / "information").write_text(
        f"Model: \t\t {name}\nIRQ:   \t\t 40\nGPU UUID: \t {uuid}\nBus Location: \t {slot}\n"
        f"Device Minor: \t {minor}\nGPU Excluded:\t {excluded}\n"
    )


def mixed():
    """An H100, an A100 and another H100, by PCI bus."""
    return (
        FakeGpu("GPU-1a2b"),
        FakeGpu("GPU-1acc", name=A100.name, memory_bytes=A100.memory_bytes),
        FakeGpu("GPU-3c4d"),
    )


def test_nvml_tells_name_memory_and_driver(root, nvml):
    module = nvml(FakeGpu("GPU-1"))
    assert find_gpus(root) == FoundGpus(gpus=(H100,), driver="550.54.14")
    # Nothing is left open in a process that only asked what it runs on.
    assert module.calls[-1] == "nvmlShutdown"


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, (H100, A100, H100)),
        ("1", (A100,)),
        ("2,1", (H100, A100)),
        (" 0 , 1", (H100, A100)),
        ("1gpu", (A100,)),
        ("GPU-1acc", (A100,)),
        ("GPU-3,GPU-1a2", (H100, H100)),
        # Nothing, and what CUDA takes for nothing.
        ("", ()),
        ("-1", ()),
        ("none", ()),
        # What is not valid ends the list, what is repeated empties it.
        ("1,7,0", (A100,)),
        ("1,-1,0", (A100,)),
        ("GPU-1", ()),
        ("GPU-1acc,GPU-9,GPU-3c4d", (A100,)),
        ("1,1", ()),
        ("99999999999999999999", ()),
    ],
)
def test_only_visible_devices_count(root, nvml, visible, found):
    nvml(*mixed())
    if visible is not None:
        start_with(root, CUDA_VISIBLE_DEVICES=visible)
    assert find_gpus(root).gpus == found


def test_what_a_script_makes_visible_to_itself_does_not_change_the_machine(root, nvml, monkeypatch):
    nvml(*mixed())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert len(find_gpus(root).gpus) == 3
    (root / "proc/self/environ").unlink()
    assert find_gpus(root).gpus == (A100,)


def divided():
    """A whole GPU, and one in MIG mode with two parts."""
    parts = [FakePart("MIG-5e6f"), FakePart("MIG-5f00", profile="2g.20gb", memory_bytes=20 * GIB)]
    return FakeGpu("GPU-0"), FakeGpu("GPU-1", parts=parts)


FIRST_PART = Gpu(name=H100.name, memory_bytes=10 * GIB, mig_profile="1g.10gb")
SECOND_PART = Gpu(name=H100.name, memory_bytes=20 * GIB, mig_profile="2g.20gb")


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        # CUDA takes one part and no whole GPU beside it.
        (None, (FIRST_PART,)),
        ("0", (H100,)),
        ("1", (FIRST_PART,)),
        ("GPU-1", (FIRST_PART,)),
        ("MIG-5f", (SECOND_PART,)),
        ("MIG-5f00,MIG-5e6f", (SECOND_PART,)),
        ("MIG-5", ()),
    ],
)
def test_of_mig_parts_one_is_used(root, nvml, visible, found):
    nvml(*divided())
    if visible is not None:
        start_with(root, CUDA_VISIBLE_DEVICES=visible)
    assert find_gpus(root).gpus == found


def test_the_profile_of_a_part_follows_from_its_slices_where_its_name_lacks_it(root, nvml):
    module = nvml(FakeGpu("GPU-1", parts=[FakePart("MIG-1")]))
    module.nvmlDeviceGetName = lambda device: "NVIDIA A100"
    assert find_gpus(root).gpus[0].mig_profile == "1c.2g.20gb"


def test_a_divided_gpu_without_parts_cannot_be_used(root, nvml):
    nvml(FakeGpu("GPU-1", parts=[]))
    assert find_gpus(root) == FoundGpus()


def test_a_lost_gpu_keeps_its_number(root, nvml):
    nvml(None, *mixed()[1:])
    start_with(root, CUDA_VISIBLE_DEVICES="1")
    assert find_gpus(root).gpus == (A100,)


def test_without_nvml_the_driver_tells_by_proc(root, no_nvml):
    write_proc(root, "0000:3b:00.0", "GPU-2", name=A100.name)
    write_proc(root, "0000:18:00.0", "GPU-1")
    write_proc(root, "0000:af:00.0", "GPU-3", excluded="Yes")
    found = find_gpus(root)
    assert [gpu.name for gpu in found.gpus] == [H100.name, A100.name]
    assert [gpu.memory_bytes for gpu in found.gpus] == [None, None]
    assert found.driver == "535.129.03"
    start_with(root, CUDA_VISIBLE_DEVICES="GPU-2")
    assert [gpu.name for gpu in find_gpus(root).gpus] == [A100.name]


def test_a_container_does_not_count_the_gpus_of_its_host(root, no_nvml):
    write_proc(root, "0000:18:00.0", "GPU-1", device=False)
    assert find_gpus(root) == FoundGpus()
    write_proc(root, "0000:3b:00.0", "GPU-2", name=A100.name, minor=1)
    assert [gpu.name for gpu in find_gpus(root).gpus] == [A100.name]


def test_the_version_of_the_open_driver_is_found(root, no_nvml):
    write_proc(root, "0000:18:00.0", "GPU-1")
    (root / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (dvs)\n"
    )
    assert find_gpus(root).driver == "550.54.14"


def test_a_library_that_does_not_fit_the_driver_is_done_without(root, nvml):
    module = nvml(FakeGpu("GPU-1"))
    module.fails = {"nvmlInit"}
    assert find_gpus(root) == FoundGpus()
    write_proc(root, "0000:18:00.0", "GPU-1")
    assert find_gpus(root).gpus == (Gpu(name=H100.name, memory_bytes=None),)


ASKED = (
    "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMemoryInfo",
    "nvmlShutdown",
)


@pytest.mark.parametrize("name", ASKED)
def test_an_error_of_nvml_is_no_failure(root, nvml, name):
    nvml(FakeGpu("GPU-1")).fails = {name}
    found = find_gpus(root).gpus
    lost = name in ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName")
    assert [gpu.name for gpu in found] == ([] if lost else [H100.name])


def test_every_function_that_is_asked_has_a_test_of_its_error(root, nvml):
    module = nvml(FakeGpu("GPU-1"))
    find_gpus(root)
    assert set(module.calls) - {"nvmlInit"} == set(ASKED)


def test_an_older_binding_lacks_functions(root, nvml, monkeypatch):
    nvml(FakeGpu("GPU-1"))
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetMigMode")
    assert find_gpus(root).gpus == (H100,)


def test_another_module_of_that_name_is_not_used(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", gpus)
    assert open_nvml(root) is None


def test_without_a_driver_there_are_no_gpus_and_nvml_is_not_asked(tmp_path, nvml):
    module = nvml(FakeGpu("GPU-1"))
    assert find_gpus(tmp_path) == FoundGpus()
    assert module.calls == []


@pytest.mark.parametrize("sign", ["dev/nvidiactl", "dev/dxg"])
def test_a_device_file_is_enough_of_a_sign(tmp_path, nvml, sign):
    nvml(FakeGpu("GPU-1"))
    (tmp_path / sign).parent.mkdir()
    (tmp_path / sign).touch()
    assert find_gpus(tmp_path).gpus == (H100,)


LOAD_WITHOUT_DRIVER = """
import sys, warnings
import autotune, autotune.system.nvml
autotune.system.nvml._SIGNS = ()
warnings.simplefilter("ignore")
default = autotune.ThroughputConfig(batch_size=2)
assert autotune.load_config("best_config.yaml", default=default) != default
print([name for name in ("torch", "pynvml") if name in sys.modules])
"""


def test_loading_settings_imports_neither_torch_nor_nvml_where_there_is_no_driver(tmp_path):
    write_best_config(tmp_path / "best_config.yaml", make_best())
    # It lies in the working directory, and so is found before any other.
    (tmp_path / "pynvml.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_DRIVER],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_gpus_are_counted_by_kind():
    assert summary(()) == "none"
    assert summary((H100, A100, H100)) == "2x NVIDIA H100 80GB HBM3, 1x NVIDIA A100-SXM4-40GB"
    assert summary((FIRST_PART,)) == "1x NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert summary((A100,), with_memory=True) == "1x NVIDIA A100-SXM4-40GB with 40 GiB"
