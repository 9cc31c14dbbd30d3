"""Ids in shards: .npy files of bounded size, written as a stream and mapped into memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from mm_rec.data.tokenizers import TokenArray
from mm_rec.errors import DataError

# Large enough that all files of a huge corpus can be mapped at once.
SHARD_TOKENS = 2**27
# Where the ids begin in a file that `_write_header` has begun.
HEADER_BYTES = 128
DTYPE = np.dtype("<u2")


def shard_path(directory: Path, part: str, number: int) -> Path:
    """Return the file of one shard."""
    return directory / f"{part}-{number:06}.npy"


class ShardedTokens:
    """The ids of one part of an encoded corpus, in memory-mapped shards.

    A shard is mapped when a window of it is read for the first time. The pages are shared between
    processes, and only names and lengths are sent to workers that are not forked.
    """

    def __init__(self, directory: Path, part: str, lengths: Sequence[int]) -> None:
        """Check the shards' sizes; `lengths` are their numbers of ids.

        Raises:
            DataError: A shard is missing or damaged.
        """
        self.directory = directory
        self.part = part
        self.lengths = tuple(lengths)
        self._starts = (0, *accumulate(self.lengths))
        self._mapped: dict[int, NDArray[np.uint16]] = {}
        for number, length in enumerate(self.lengths):
            self._check(shard_path(directory, part, number), length)

    def __len__(self) -> int:
        """Return the number of ids."""
        return self._starts[-1]

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """Return the ids start ... start + length - 1, across the ends of shards.

        Raises:
            DataError: A shard has been removed.
        """
        number = bisect_right(self._starts, start) - 1
        offset = start - self._starts[number]
        if start + length <= self._starts[number + 1]:
            return self._shard(number)[offset : offset + length].astype(np.int64)
        parts = []
        while length:
            part = self._shard(number)[offset : offset + length]
            parts.append(part)
            number, offset, length = number + 1, 0, length - len(part)
        return np.concatenate(parts).astype(np.int64)

    def _shard(self, number: int) -> NDArray[np.uint16]:
        shard = self._mapped.get(number)
        if shard is None:
            path = shard_path(self.directory, self.part, number)
            try:
                shard = self._mapped[number] = np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise _damaged(path, str(error)) from error
        return shard

    @staticmethod
    def _check(path: Path, length: int) -> None:
        expected = HEADER_BYTES + length * DTYPE.itemsize
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _damaged(path, str(error.strerror)) from error
        if size != expected:
            raise _damaged(path, f"it has {size:,} bytes in place of {expected:,}")

    def __reduce__(self) -> tuple[type[ShardedTokens], tuple[Path, str, tuple[int, ...]]]:
        """Send names and lengths, not the pages."""
        return ShardedTokens, (self.directory, self.part, self.lengths)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is not a readable token file, delete {path.parent}: {reason}")


class ShardWriter:
    """Writes ids into .npy files of at most `shard_tokens` ids, none of them empty.

    Attributes:
        written: The complete files and how many ids each holds.

    Raises:
        OSError: A file cannot be written.
    """

    def __init__(self, directory: Path, name: str, shard_tokens: int) -> None:
        """Write files NAME-0, NAME-1, ... into `directory` as they are needed."""
        self.written: list[tuple[Path, int]] = []
        self._directory = directory
        self._name = name
        self._shard_tokens = shard_tokens
        self._file: BinaryIO | None = None
        self._num_tokens = 0

    def add(self, ids: TokenArray) -> None:
        """Append ids."""
        while len(ids):
            if self._file is None:
                self._file = self._path().open("wb")
                _write_header(self._file, 0)
                self._num_tokens = 0
            now = ids[: self._shard_tokens - self._num_tokens]
            self._file.write(now.astype(DTYPE, copy=False).tobytes())
            self._num_tokens += len(now)
            ids = ids[len(now) :]
            if self._num_tokens == self._shard_tokens:
                self.close()

    def close(self) -> None:
        """Complete the current file: its length is known only now."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with file:
            file.seek(0)
            _write_header(file, self._num_tokens)
        self.written.append((self._path(), self._num_tokens))

    def _path(self) -> Path:
        return self._directory / f"{self._name}-{len(self.written)}"


def _write_header(file: BinaryIO, num_tokens: int) -> None:
    # numpy leaves room for any length, so that the header can be written again in its place.
    header = {"descr": npy_format.dtype_to_descr(DTYPE), "fortran_order": False}
    npy_format.write_array_header_1_0(file, header | {"shape": (num_tokens,)})
    assert file.tell() == HEADER_BYTES
