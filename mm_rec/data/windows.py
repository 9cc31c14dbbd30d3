"""Windows of T + 1 ids over a text that is encoded already, or as they are read; and their order.

A sample is one tensor of T + 1 ids; the training step cuts it into inputs (all but the last) and
labels (all but the first), and nothing else shifts anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from mm_rec.data.tokenizers import PAD_ID, UnitTokenizer
from mm_rec.errors import ConfigError, DataError

IDS_DTYPE = np.dtype("<u2")
# Indices that are made numbers of Python at a time.
_BLOCK = 4_096


class TokenSource(Protocol):
    """A sequence of ids from which windows can be read."""

    def __len__(self) -> int:
        """Return the number of ids."""

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """Return the ids start ... start + length - 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The ids `start` ... `stop` - 1 of a source."""

    source: TokenSource
    start: int
    stop: int

    def __len__(self) -> int:
        """Return the number of ids."""
        return self.stop - self.start

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """See `TokenSource`."""
        return self.source.window(self.start + start, length)


class StoredIds:
    """Ids in a file, mapped into memory: processes share its pages, and send its name alone.

    Raises:
        DataError: The file is missing, or has another length.
    """

    def __init__(self, path: Path, num_ids: int) -> None:
        self.path = path
        self.num_ids = num_ids
        try:
            size = path.stat().st_size
            if size != num_ids * IDS_DTYPE.itemsize:
                raise DataError(
                    f"{path} is damaged, delete {path.parent}: it has {size:,} bytes in place of "
                    f"{num_ids * IDS_DTYPE.itemsize:,}"
                )
            self._ids = np.memmap(path, dtype=IDS_DTYPE, mode="r") if num_ids else np.empty(0)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error

    def __len__(self) -> int:
        """Return the number of ids."""
        return self.num_ids

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """See `TokenSource`."""
        return self._ids[start : start + length].astype(np.int64)

    def __reduce__(self) -> tuple[type[StoredIds], tuple[Path, int]]:
        """Send the name, not the pages."""
        return StoredIds, (self.path, self.num_ids)


class RawText:
    """Documents whose windows are encoded when they are asked for, in plain Python.

    Gives exactly the ids that encoding ahead gives: each document's, then PAD. The text itself is
    kept in memory.
    """

    def __init__(self, documents: Sequence[str], tokenizer: UnitTokenizer) -> None:
        self.tokenizer = tokenizer
        self._raw = [tokenizer.raw(document) for document in documents]
        self._ends = np.cumsum([len(raw) + 1 for raw in self._raw], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of ids."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """Encode one window, across the ends of documents where it must."""
        ids: list[int] = []
        index = int(np.searchsorted(self._ends, start, side="right"))
        offset = start - (int(self._ends[index - 1]) if index else 0)
        while len(ids) < length:
            raw = self._raw[index]
            ids += self.tokenizer.encode_raw(raw[offset : offset + length - len(ids)])
            if len(ids) < length:
                ids.append(PAD_ID)
            index, offset = index + 1, 0
        return np.array(ids, dtype=np.int64)


class WindowDataset(Dataset[Tensor]):
    """Windows of `seq_len` + 1 ids, `stride` apart; the stride is `seq_len` unless given.

    Raises:
        DataError: The source is too short for a single window.
    """

    def __init__(self, source: TokenSource, *, seq_len: int, stride: int | None = None) -> None:
        self.source = source
        self.seq_len = seq_len
        self.stride = stride or seq_len
        if len(source) < seq_len + 1:
            raise DataError(
                f"the data hold {len(source)} tokens, fewer than one sample of --seq-len "
                f"{seq_len} needs ({seq_len + 1}): give more --data or a smaller --seq-len"
            )

    def __len__(self) -> int:
        """Return the number of windows."""
        return (len(self.source) - self.seq_len - 1) // self.stride + 1

    def __getitem__(self, index: int) -> Tensor:
        """Return window `index`, int64, [T + 1]."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return torch.from_numpy(self.source.window(index * self.stride, self.seq_len + 1))


class WindowOrder(Sampler[int]):
    """A seeded permutation of the windows, cut to whole optimizer steps.

    A function of seed and epoch alone: neither the batch size nor the number of workers matters,
    and the tail that does not fill an optimizer step is left out, so every optimizer step sees
    the same windows however the effective batch is split into micro-batches. It can start in
    mid-epoch.

    Raises:
        DataError: There are fewer windows than one optimizer step needs.
    """

    def __init__(self, num_windows: int, *, effective_batch_size: int, seed: int) -> None:
        super().__init__()
        self.num_windows = num_windows
        self.seed = seed
        self.samples_per_epoch = num_windows - num_windows % effective_batch_size
        if not self.samples_per_epoch:
            raise DataError(
                f"the data give {num_windows} samples, fewer than one optimizer step of "
                f"{effective_batch_size}: give more --data, a shorter --seq-len or --stride, "
                "or a smaller effective batch size"
            )
        # In shared memory, so that workers that outlive an epoch see the next position as well.
        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()  # type: ignore[no-untyped-call]

    def seek(self, *, epoch: int, start: int = 0) -> None:
        """Make the next pass that of `epoch`, from its sample `start` on.

        Raises:
            ConfigError: `start` lies outside the epoch.
        """
        if not 0 <= start <= self.samples_per_epoch:
            raise ConfigError(
                f"start must lie in [0, {self.samples_per_epoch}], the samples of one epoch, "
                f"got {start}"
            )
        self._position[0] = epoch
        self._position[1] = start

    def __len__(self) -> int:
        """Return the number of windows of the next pass."""
        return self.samples_per_epoch - int(self._position[1])

    def __iter__(self) -> Iterator[int]:
        """Yield indices of windows."""
        epoch, start = (int(value) for value in self._position)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_windows)
        for first in range(start, self.samples_per_epoch, _BLOCK):
            yield from order[first : min(first + _BLOCK, self.samples_per_epoch)].tolist()


class StreamedWindows(IterableDataset[Tensor]):
    """The windows of a dataset as a stream, shared out between the workers.

    Worker w of W yields blocks w, w + W, ... of `block_size` windows. With the batch size as
    block size the loader puts the batches together in the very order that one process would give,
    and each window comes exactly once whatever the number of workers.
    """

    def __init__(self, dataset: WindowDataset, order: WindowOrder, *, block_size: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.order = order
        self.block_size = block_size

    def __len__(self) -> int:
        """Return the number of windows of one pass, over all workers."""
        return len(self.order)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield this worker's windows."""
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for position, index in enumerate(self.order):
            if position // self.block_size % num_workers == worker_id:
                yield self.dataset[index]
