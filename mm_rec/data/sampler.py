"""The order in which windows are visited: a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from mm_rec.data.permutation import Permutation
from mm_rec.errors import ConfigError, DataError


class WindowOrder(Sampler[int]):
    """A seeded permutation of the windows, cut to whole optimizer steps.

    The order depends neither on the batch size nor on the number of workers, and the tail that
    does not fill an optimizer step is left out, so every optimizer step sees the same windows
    however the effective batch is split into micro-batches. It can start in mid-epoch, and takes no
    memory to speak of whatever the number of windows.
    """

    def __init__(self, num_windows: int, *, effective_batch_size: int, seed: int) -> None:
        """Order `num_windows` windows.

        Raises:
            DataError: There are fewer windows than one optimizer step needs.
        """
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
        permutation = Permutation(self.num_windows, key=(self.seed, epoch))
        for block in permutation.blocks(start, self.samples_per_epoch):
            yield from block.tolist()
