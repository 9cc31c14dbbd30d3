"""A DataLoader that somebody else made: its settings, and the same loader with other ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autotune.collector import DEFAULT
from autotune.config import ThroughputConfig
from autotune.errors import ConfigError
from autotune.worker_start import start_method_of

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

# What a loader keeps of its arguments under their names; some only newer versions of torch know.
_KEPT = ("collate_fn", "worker_init_fn", "generator", "pin_memory_device")
_SETTINGS = (
    *("batch_size", "num_workers", "prefetch_factor", "persistent_workers", "pin_memory"),
    *("in_order", "multiprocessing_context"),
)


def settings_of(loader: DataLoader[Any]) -> ThroughputConfig:
    """The settings that a DataLoader was made with.

    Where the dataset gives whole batches (`batch_size=None`), the batch size counts as 1.

    Raises:
        ConfigError: It is something else than a DataLoader.
    """
    from torch.utils.data import DataLoader

    if not isinstance(loader, DataLoader):
        raise ConfigError(
            f"the training data must come from one torch.utils.data.DataLoader, not from "
            f"{type(loader).__name__}: call autotune.load_config and autotune.steps where its "
            "batches are made"
        )
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return ThroughputConfig(
        batch_size=batch_size if isinstance(batch_size, int) else 1,
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor if loader.num_workers else None,
        persistent_workers=loader.persistent_workers,
        pin_memory=bool(loader.pin_memory),
        in_order=not loader.num_workers or getattr(loader, "in_order", True),
        multiprocessing_context=start_method_of(loader),
    )


def rebuilt(loader: DataLoader[Any], config: ThroughputConfig) -> DataLoader[Any]:
    """A loader over the same data in the same order, with the settings of `config`.

    Gives the loader itself where it has these settings. A `batch_sampler` is kept, and with it the
    batch size.

    Raises:
        ConfigError: Its class takes other arguments than a DataLoader's.
    """
    from torch.utils.data import IterableDataset

    if not _differs(loader, config):
        return loader
    kept = {name: getattr(loader, name) for name in _KEPT if hasattr(loader, name)}
    if config.num_workers:
        kept["timeout"] = loader.timeout
        kept["multiprocessing_context"] = loader.multiprocessing_context
    if not kept.get("pin_memory_device"):
        kept.pop("pin_memory_device", None)
    arguments = config.dataloader_kwargs(kept.pop("worker_init_fn", None))
    batching: dict[str, Any] = {}
    if loader.batch_size is not None:
        batching["drop_last"] = loader.drop_last
    else:
        del arguments["batch_size"]
        # Without automatic batching there is none of these two, and None is what says so.
        own = "batch_size" if loader.batch_sampler is None else "batch_sampler"
        batching[own] = loader.batch_sampler
    if "batch_sampler" not in batching and not isinstance(loader.dataset, IterableDataset):
        batching["sampler"] = loader.sampler
    try:
        return type(loader)(loader.dataset, **{**batching, **kept, **arguments})
    except TypeError as error:
        raise ConfigError(
            f"{type(loader).__name__} cannot be made again with the arguments of a DataLoader "
            f"({error}): call autotune.load_config and autotune.steps where it is made"
        ) from error


def _differs(loader: DataLoader[Any], config: ThroughputConfig) -> bool:
    """Whether a loader that follows `config` is another one."""
    if config.num_workers and config.gc != DEFAULT:
        return True
    own = settings_of(loader)
    return any(getattr(own, name) != getattr(config, name) for name in _SETTINGS)
