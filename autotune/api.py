"""The two calls of a training loop: `load_config` and `steps`."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autotune.config import ThroughputConfig
from autotune.errors import AutotuneError, ConfigError, StaleSettingsWarning
from autotune.instrument.fork_server import (
    become_trial,
    current_trial,
    is_measured,
    may_be_measured,
    settings_of_parent,
)
from autotune.instrument.ranks import find_place
from autotune.settings_files import settings_exist

if TYPE_CHECKING:
    from autotune.best_config import BestConfig

Batch = TypeVar("Batch")
UnitCounter = Callable[[Any], float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tuned:
    """The file that this process trains with."""

    path: Path
    best: BestConfig


# The files that settings came from, until the size of the data was compared.
_tuned: list[_Tuned] = []


def load_config(
    path: str | os.PathLike[str] | None,
    *,
    default: ThroughputConfig,
    effective_batch_size: int | None = None,
) -> ThroughputConfig:
    """The settings to train with; when this returns, the process is set up for them.

    In ordinary training: what the file at `path` holds, or the one for this kind of machine in the
    folder beside it (`best_config.d`), or `default` where there is none (or where `path` is None).
    Under `autotune run`: the configuration to be measured.

    Call it after dataset, model and optimizer are built and before the loader is: a measured
    trial starts at this call, so that all before it is paid for once. Nothing before it may start
    threads (a backward pass on a GPU, say); where something does, trials start afresh, slower.

    Args:
        path: A `best_config.yaml`; where there is none yet, `default` is used.
        default: The settings that training has without tuning: the baseline.
        effective_batch_size: Samples per optimizer step that the training recipe asks for, of all
            ranks together. Gradient accumulation then makes up what `batch_size` leaves, in every
            configuration, so that tuning changes the speed and nothing else.

    Raises:
        BadInputError: The file breaks a rule; the message names key, value and rule.
        ConfigError: The batch size does not divide `effective_batch_size`, or `default` is
            something else.

    Warns:
        StaleSettingsWarning: The file was tuned on a different machine, with other GPUs or
            another GPU driver, with another version of torch or Python, or with another number of
            ranks per machine; the message names what differs. `steps` warns where the data have
            another size.
    """
    if not isinstance(default, ThroughputConfig):
        raise ConfigError(
            f"default must be an autotune.ThroughputConfig, not {type(default).__name__}"
        )
    default = _for_these_ranks(default, effective_batch_size)
    location = None if path is None else str(Path(path).absolute())
    measured = may_be_measured()
    trial = become_trial(default, effective_batch_size, location) if measured else None
    if trial is not None:
        config = trial.config
    elif (settings := settings_of_parent()) is not None:
        config = settings
    elif path is not None and settings_exist(Path(path)):
        _tuned.append(_read(Path(path)))
        config = _for_these_ranks(_tuned[-1].best.config, effective_batch_size)
    else:
        config = default
    config.apply_to_process()
    return config


def steps(loader: Iterable[Batch], *, units: UnitCounter | None = None) -> Iterable[Batch]:
    """The batches of `loader`, for the loop to train on.

    In ordinary training this is `loader` itself: no cost at all. Under `autotune run` it times
    the loop on request, goes through the loader again and again, and never returns to the code
    after the loop.

    Args:
        loader: Anything that gives batches; usually a DataLoader.
        units: Counts what matters in a batch, where that is not the sample: tokens, frames. Its
            name names the unit (`def tokens(batch): return batch.numel()`). The search then
            maximises these per second. It may give a tensor of one number, which is read after
            many steps: what it counts on a GPU need not be waited for.

    Raises:
        AutotuneError: Under `autotune run`, when `load_config` was not called before. In any
            case, when a loader's worker comes here while it imports the script.
    """
    # As multiprocessing does where a process is started in that phase. Without workers of its own,
    # each worker would train all the epochs instead, and its loader would wait for it.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise AutotuneError(
            "autotune.steps was called while a new process imports the script: put the training "
            'below `if __name__ == "__main__":`'
        )
    trial = current_trial()
    if trial is not None:
        # Imported here: ordinary training needs none of it.
        from autotune.instrument.loops import loops_of

        return loops_of(trial).loader(loader, units)
    if is_measured():
        raise AutotuneError("autotune.load_config must be called before autotune.steps")
    if len(_tuned) == 1:
        _compare_size(loader)
    return loader


def is_trial() -> bool:
    """Whether this process, or the one that started it, is measured.

    It should then write no checkpoints, logs or metrics.
    """
    return is_measured() or settings_of_parent() is not None


def _for_these_ranks(
    config: ThroughputConfig, effective_batch_size: int | None
) -> ThroughputConfig:
    """The same settings for the ranks that train here, with the effective batch that is asked."""
    place = find_place()
    config = dataclasses.replace(config, num_ranks=place.world_size, ranks_per_node=place.num_here)
    if effective_batch_size is None:
        return config
    return config.with_effective_batch_size(effective_batch_size)


def _read(path: Path) -> _Tuned:
    # Imported here: validation costs 0.2 s that training without a file need not pay.
    from autotune.best_config import read_best_config, read_settings
    from autotune.system.machine import this_machine
    from autotune.system.versions import versions

    if find_place().may_span_machines and path.is_file():
        # All ranks of a job need the same settings, whatever machines they are on.
        best = read_best_config(path)
    else:
        path, best = read_settings(path, this_machine())
    differences = best.differences(this_machine(), versions())
    tuned, here = best.config.ranks_per_node, find_place().num_here
    if tuned != here:
        differences = (*differences, f"ranks per machine: {tuned}, here {here}")
    if differences:
        _warn_of(path, differences, stacklevel=4)
    return _Tuned(path=path, best=best)


def _compare_size(loader: Iterable[Any]) -> None:
    """Warn where the data of a training are not of the size that the settings were tuned for.

    The first loop that takes its data in another order than they lie in is taken for the training:
    one that does not may evaluate. A sampler of several ranks tells the share of one, so that their
    number must be the same.
    """
    from autotune.best_config import WorkloadRecord
    from autotune.instrument.loader_facts import samples_per_epoch

    [found] = _tuned
    differences: tuple[str, ...] = ()
    # No loader of anybody's is to fail for this.
    with contextlib.suppress(Exception):
        if type(getattr(loader, "sampler", None)).__name__ == "SequentialSampler":
            return
        _tuned.clear()
        if found.best.baseline.config.num_ranks == find_place().world_size:
            now = WorkloadRecord(samples_per_epoch=samples_per_epoch(loader))
            differences = found.best.workload.differences(now)
    if differences:
        _warn_of(found.path, differences, stacklevel=4)


def _warn_of(path: Path, differences: Sequence[str], *, stacklevel: int) -> None:
    warnings.warn(
        f"{path} was tuned under other conditions ({'; '.join(differences)}): `autotune check` "
        "tells whether it still holds",
        StaleSettingsWarning,
        stacklevel=stacklevel,
    )
