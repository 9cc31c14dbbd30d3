"""`best_config.yaml`: what tuning found, in a form that training reads and a person understands."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field

from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.files import read_yaml, write_atomically
from autotune.patch_target import PatchTarget
from autotune.requirements import Requirements
from autotune.settings_files import file_of_kind, files_of_kinds
from autotune.system.gpus import Gpu, summary
from autotune.system.machine import Machine
from autotune.validation import validate

SCHEMA_VERSION = 2

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Bytes = Annotated[int, Field(ge=0)]
_FORBID_UNKNOWN_KEYS = {"extra": "forbid"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What one configuration reached in confirmation.

    Where the script counts units of its own, `units_per_s` is what was maximised.
    `samples_per_update` are those of an optimizer step, where such steps were seen.
    `samples_per_s_low` and `_high` bound, with 95 % confidence, what one more run will reach.
    Shares and utilisation are 0 to 1; `cpu_utilisation` is against the usable cores. The others
    are as in `measurement.Measurement`; `shared_memory_bytes` are those in `/dev/shm`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    samples_per_s: _Positive
    samples_per_s_low: _Positive
    samples_per_s_high: _Positive
    seconds_per_step: _Positive
    seconds_per_optimizer_step: _Positive
    cpu_utilisation: _NonNegative
    cpu_s_per_sample: _NonNegative
    data_wait_share: _NonNegative
    peak_memory_bytes: _Bytes
    shared_memory_bytes: _Bytes = 0
    device_memory_bytes: _Bytes | None = None
    wait_cpu_share: _NonNegative | None = None
    joules_per_sample: _NonNegative | None = None
    gpu_joules_per_sample: _NonNegative | None = None
    gpu_utilisation: _NonNegative | None = None
    unit: str = "samples"
    units_per_s: _Positive | None = None
    samples_per_update: _Positive | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BaselinePerformance(Performance):
    """The same for the settings that training had before, and those settings."""

    config: ThroughputConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """Throughput of the best candidate ÷ the baseline's, with its 95 % interval.

    Where it is not significant, the baseline's own settings are the chosen ones, unless `apply` was
    asked for others.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    ratio: _Positive
    low: _Positive
    high: _Positive
    significant: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """The machine that the settings were tuned on. A file of one without a GPU names none."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    fingerprint: str
    cpu: str
    usable_cores: Annotated[int, Field(ge=1)]
    memory_bytes: Annotated[int, Field(ge=0)]
    system: str
    hostname: str
    gpus: tuple[Gpu, ...] = ()
    gpu_driver: str | None = None

    @classmethod
    def of(cls, machine: Machine) -> MachineRecord:
        """The record of `machine`."""
        facts = {field.name: getattr(machine, field.name) for field in dataclasses.fields(machine)}
        return cls(fingerprint=machine.fingerprint, **facts)

    def differences(self, here: Machine) -> tuple[str, ...]:
        """What is not the same on the machine `here`, each with both values; nothing if all is.

        What `/proc` does not tell of GPUs, their memory and MIG profile, is not compared.
        """
        if self.fingerprint == here.fingerprint:
            return ()
        gpus, gpus_here = self.gpus, here.gpus
        in_part = any(gpu.memory_bytes is None for gpu in (*gpus, *gpus_here))
        if in_part:
            gpus, gpus_here = (
                tuple(Gpu(name=gpu.name, memory_bytes=None) for gpu in some)
                for some in (gpus, gpus_here)
            )
        values = {
            "processor": (self.cpu, here.cpu),
            "usable cores": (self.usable_cores, here.usable_cores),
            "memory": (_gib(self.memory_bytes), _gib(here.memory_bytes)),
            "system": (self.system, here.system),
            "GPUs": (summary(gpus, with_memory=True), summary(gpus_here, with_memory=True)),
        }
        if gpus and gpus_here:
            values["GPU driver"] = (self.gpu_driver or "unknown", here.gpu_driver or "unknown")
        found = tuple(
            f"{name}: {before}, here {now}"
            for name, (before, now) in values.items()
            if before != now
        )
        if found or in_part:
            return found
        return (f"fingerprint: {self.fingerprint}, here {here.fingerprint}",)


# A workload that grew by less than this is the same: data are added day by day.
_SAME_SIZE = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRecord:
    """How large the training was that the settings were tuned for; None for what is not known.

    Attributes:
        samples_per_epoch: Samples that an epoch is drawn from.
        num_parameters: Numbers that the optimizers of a process learn.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    samples_per_epoch: Annotated[int, Field(ge=0)] | None = None
    num_parameters: Annotated[int, Field(ge=0)] | None = None

    def differences(self, now: WorkloadRecord) -> tuple[str, ...]:
        """What has another size now, by more than a tenth, each with both numbers."""
        sizes = {
            "samples in an epoch": (self.samples_per_epoch, now.samples_per_epoch),
            "parameters": (self.num_parameters, now.num_parameters),
        }
        return tuple(
            f"{name}: {before:,}, here {after:,}"
            for name, (before, after) in sizes.items()
            if before is not None
            and after is not None
            and abs(after - before) > _SAME_SIZE * before
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """Where the figures come from, so that they can be looked up and measured again."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    storage: str
    name: str
    trial_numbers: tuple[int, ...]
    command: str
    date: str
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BestConfig:
    """The whole file."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID_UNKNOWN_KEYS

    config: ThroughputConfig
    expected: Performance
    baseline: BaselinePerformance
    speedup: Speedup
    machine: MachineRecord
    study: StudyRecord
    workload: WorkloadRecord = WorkloadRecord()
    requirements: Requirements | None = None
    patch: PatchTarget | None = None
    schema_version: int = SCHEMA_VERSION

    def differences(
        self,
        here: Machine,
        versions: Mapping[str, str],
        workload: WorkloadRecord | None = None,
    ) -> tuple[str, ...]:
        """What the speed depends on and is not as it was in the tuning, each with both values.

        Args:
            here: This machine.
            versions: As `system.versions` gives them; those that either lacks are not compared.
            workload: The size of this training, where it is known.
        """
        before = self.study.versions
        return (
            *self.machine.differences(here),
            *(
                f"{name}: {before[name]}, here {now}"
                for name, now in versions.items()
                if _speed(name, before.get(name, now)) != _speed(name, now)
            ),
            *(self.workload.differences(workload) if workload is not None else ()),
        )


_COMMENTS = {
    "schema_version": "",
    "config": "The settings. autotune.load_config reads these.",
    "expected": "What training with them should reach; low and high bound one more run (95 %).",
    "baseline": "What the settings before reached, measured in turn with them.",
    "speedup": "The best candidate's throughput ÷ the baseline's (95 % interval).",
    "machine": "Where this was measured; loading it on another machine gives a warning.",
    "study": "Where the figures come from.",
    "workload": "How large the training was.",
    "requirements": "What `autotune apply` was asked to keep to.",
    "patch": "What `autotune exec` gives the settings to, in a script that calls autotune nowhere.",
}


def write_best_config(path: Path, best: BestConfig) -> None:
    """Write the file atomically, with comments.

    Raises:
        BadInputError: The place cannot be written; the file that was there stays.
    """
    data = dataclasses.asdict(best)
    if not best.machine.gpus:
        del data["machine"]["gpus"], data["machine"]["gpu_driver"]
    for name in ("patch", "requirements"):
        if data[name] is None:
            del data[name]
    speedup = best.speedup
    ratio = f"{speedup.ratio:.2f} times the baseline's throughput"
    verdict = f"{ratio} ({speedup.low:.2f} to {speedup.high:.2f})"
    if best.requirements is not None and best.config == best.baseline.config:
        verdict = f"the script's own settings, as no others with {best.requirements} surely gain"
    elif best.requirements is not None:
        verdict = f"the best with {best.requirements}: {verdict}"
    elif not speedup.significant:
        verdict = "no significant gain over the baseline"
    parts = [f"# Written by autotune: {verdict}.\n"]
    for key, comment in _COMMENTS.items():
        if key not in data:
            continue
        heading = f"\n# {comment}\n" if comment else ""
        parts.append(heading + _dump({key: _plain(data[key])}))
    write_atomically(path, "".join(parts))


def read_best_config(path: Path) -> BestConfig:
    """The file's content, every key checked.

    Raises:
        BadInputError: The file is not there, no YAML, of another schema, or breaks a rule; the
            message names the key, its value and what is allowed.
    """
    data = read_yaml(path)
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BadInputError(
            f"{path}: schema_version must be {SCHEMA_VERSION}, not {version!r}: "
            "run `autotune run` again to write the file anew"
        )
    return validate(BestConfig, data, source=str(path))


def read_settings(path: Path, here: Machine) -> tuple[Path, BestConfig]:
    """The settings for a machine, and where they lie: tuned on its kind, or on the nearest one.

    Near is, in this order: the same GPUs, as many cores, the same processor, as much memory.

    Args:
        path: A settings file, beside which there may be a folder of others, or that folder (see
            `settings_files`). Where there are none, reading it says so.
        here: The machine.

    Raises:
        BadInputError: See `read_best_config`.
    """
    own = file_of_kind(path, here.kind)
    if own.is_file():
        return own, read_best_config(own)
    files = files_of_kinds(path)
    if path.is_file() or not files:
        files.insert(0, path)
    found = []
    for file in files:
        # Beside a file that was named, there may be others that are none of settings.
        with contextlib.suppress(*() if file == path else (BadInputError,)):
            found.append((file, read_best_config(file)))
    if not found:
        return files[0], read_best_config(files[0])
    return min(found, key=lambda one: _distance(one[1].machine, here))


def _distance(tuned: MachineRecord, here: Machine) -> tuple[float, ...]:
    """How unlike two machines are; less is nearer, and the first number counts most."""
    gpus, gpus_here = ([gpu.name for gpu in some] for some in (tuned.gpus, here.gpus))
    return (
        bool(tuned.differences(here)),
        set(gpus) != set(gpus_here),
        abs(len(gpus) - len(gpus_here)),
        abs(math.log2(tuned.usable_cores / here.usable_cores)),
        tuned.cpu != here.cpu,
        abs(math.log2(max(1, tuned.memory_bytes) / max(1, here.memory_bytes))),
    )


def _speed(name: str, version: str) -> tuple[str, ...]:
    """The part of a version on which speed depends: corrections of Python change nothing."""
    return tuple(version.split("."))[: 2 if name == "python" else None]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.0f} GiB"


def _dump(data: dict[str, Any]) -> str:
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100))


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Plain YAML types; floats to six digits, which is far beyond what was measured."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, enum.Enum):
        return value.value
    return value
