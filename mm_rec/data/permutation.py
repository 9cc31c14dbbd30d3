"""A keyed permutation of 0 ... n - 1 that can be asked for any stretch of itself.

A table of the order of a billion windows would take 8 GB in every process that holds it; this
takes a few kilobytes and no preparation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Rounds of the Feistel network: four make a good shuffle of large domains (Luby and Rackoff, 1988);
# more, since the halves are small here and each round costs little.
NUM_ROUNDS = 8
# Up to so many numbers are shuffled as a whole: halves of a few bits would have too few round
# functions for an even shuffle.
BLOCK_SIZE = 4_096


class Permutation:
    """A bijection of 0 ... size - 1, a function of `size` and `key` alone.

    An alternating Feistel network over the next power of two; where it leaves the range, it is
    applied again, which ends because it is a bijection (cycle walking).

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002).
    """

    def __init__(self, size: int, *, key: tuple[int, ...]) -> None:
        """Prepare the keys of the rounds."""
        self.size = size
        self._table: NDArray[np.int64] | None = None
        if size <= BLOCK_SIZE:
            self._table = np.random.default_rng(key).permutation(size)
        num_bits = (size - 1).bit_length()
        self._right_bits = np.uint64(num_bits // 2)
        self._left_mask = np.uint64((1 << (num_bits - num_bits // 2)) - 1)
        self._right_mask = np.uint64((1 << (num_bits // 2)) - 1)
        self._keys = np.random.SeedSequence(key).generate_state(NUM_ROUNDS, np.uint64)

    def blocks(self, start: int, stop: int) -> Iterator[NDArray[np.int64]]:
        """Yield the images of start ... stop - 1, some thousand at a time."""
        for first in range(start, stop, BLOCK_SIZE):
            yield self(np.arange(first, min(first + BLOCK_SIZE, stop)))

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the images of positions in 0 ... size - 1."""
        if self._table is not None:
            return self._table[positions]
        values = self._encrypt(positions.astype(np.uint64))
        while (outside := np.flatnonzero(values >= self.size)).size:
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._right_bits, values & self._right_mask
        for number, key in enumerate(self._keys):
            if number % 2:
                right = right ^ (_mix(left ^ key) & self._right_mask)
            else:
                left = left ^ (_mix(right ^ key) & self._left_mask)
        return (left << self._right_bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all others.

    Source: the finaliser of SplitMix64, variant 13 of Stafford (2011),
    https://zimbry.blogspot.com/2011/09/better-bit-mixing-improving-on.html.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
