"""Windows of T + 1 ids over a token array, over raw text, or streamed.

A sample is one tensor of T + 1 ids; the training step cuts it into inputs (all but the last) and
labels (all but the first), and nothing else shifts anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from mm_rec.data.sampler import WindowOrder
from mm_rec.data.tokenizers import PAD_ID, UnitTokenizer
from mm_rec.errors import DataError


class TokenSource(Protocol):
    """A sequence of ids from which windows can be read."""

    def __len__(self) -> int:
        """Return the number of ids."""

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """Return the ids start ... start + length - 1."""


class RawText:
    """Documents whose windows are encoded when they are asked for, in plain Python.

    Gives exactly the ids that encoding ahead gives: each document's, then PAD. The text itself is
    kept in memory.
    """

    def __init__(self, documents: Sequence[str], tokenizer: UnitTokenizer) -> None:
        """Keep the documents as text and reckon where each begins."""
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
    """Windows of `seq_len` + 1 ids, `stride` apart."""

    def __init__(self, source: TokenSource, *, seq_len: int, stride: int | None = None) -> None:
        """Cut `source` into windows; the stride is `seq_len` unless given.

        Raises:
            DataError: The source is too short for a single window.
        """
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


class StreamedWindows(IterableDataset[Tensor]):
    """The windows of a dataset as a stream, shared out between the workers.

    Worker w of W yields blocks w, w + W, ... of `block_size` windows. With the batch size as
    block size the loader puts the batches together in the very order that one process would give,
    and each window comes exactly once whatever the number of workers.
    """

    def __init__(self, dataset: WindowDataset, order: WindowOrder, *, block_size: int) -> None:
        """Stream `dataset` in the given order."""
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
