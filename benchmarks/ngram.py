"""A character n-gram model to measure the neural ones against.

Shapes: N rows, T ids per row, U distinct n-grams, C distinct contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

# For texts so short that the numbers of rare n-grams tell nothing.
DEFAULT_DISCOUNTS = (0.5, 1.0, 1.5)
# With no discount a context would leave nothing for what was never seen after it.
MIN_DISCOUNT = 0.05
# Ids scored at once: bounds the memory beside that of the counts.
SCORE_BLOCK = 2**20


def ngram_bits_per_token(
    train_ids: Ids, validation_ids: Ids, *, order: int, vocab_size: int
) -> float:
    """Return the mean bits that an n-gram model of `train_ids` needs for an id held out.

    Args:
        train_ids: [T].
        validation_ids: [N, T], rows that do not know of each other; the first id of each row is
            given, all others are scored. [T] is one row.
        order: n; 1 is the unigram model.
        vocab_size: Number of ids that could come next.
    """
    return NgramModel(train_ids, order=order, vocab_size=vocab_size).bits_per_token(validation_ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Level:
    """The n-grams of one length, as sorted keys, and what they say about their last id.

    Attributes:
        keys_u: Packed n-grams.
        shares_u: The discounted relative frequency of each after its context.
        contexts_c: Packed n-grams without their last id.
        rests_c: What the discounts leave for the level below, a share of 1.
    """

    keys_u: Ids
    shares_u: Floats
    contexts_c: Ids
    rests_c: Floats

    def interpolate(self, keys: Ids, lower: Floats, vocab_size: int) -> Floats:
        """Return the probabilities of packed n-grams, given those of the level below."""
        contexts = keys // vocab_size
        rests = _look_up(self.contexts_c, self.rests_c, contexts, missing=1.0)
        return _look_up(self.keys_u, self.shares_u, keys, missing=0.0) + rests * lower


class NgramModel:
    """Interpolated Kneser-Ney with three discounts per length ("modified").

    The longest n-grams are counted as they are, the shorter ones by the number of ids that they
    were seen after; below the unigrams lies the uniform distribution.

    Source: S. F. Chen, J. Goodman, "An empirical study of smoothing techniques for language
    modeling", Computer Speech and Language 13 (1999), 359-394.
    """

    def __init__(self, train_ids: Ids, *, order: int, vocab_size: int) -> None:
        """Count the n-grams of `train_ids`, [T].

        Raises:
            ValueError: The n-grams do not fit into 63 bits, or the text is shorter than one.
        """
        if order < 1 or vocab_size**order >= 2**63:
            raise ValueError(f"{order}-grams of {vocab_size} ids do not fit into 63 bits")
        if len(train_ids) < order:
            raise ValueError(f"{len(train_ids)} ids do not hold a single {order}-gram")
        self.vocab_size = vocab_size
        keys_u, counts_u = _count(_pack(train_ids, order, vocab_size))
        levels = [_make_level(keys_u, counts_u, vocab_size)]
        for length in range(order - 1, 0, -1):
            # Without its first id: each shorter n-gram now stands there once per id before it.
            keys_u, counts_u = _count(keys_u % vocab_size**length)
            levels.append(_make_level(keys_u, counts_u, vocab_size))
        self._levels = tuple(reversed(levels))

    def probabilities(self, ids_nt: Ids) -> Floats:
        """Return the probability of every id after the ones before it in its row, [N, T]."""
        lower_nt = np.full(ids_nt.shape, 1.0 / self.vocab_size)
        # Ids near the start of a row lack the context for the longer n-grams; theirs stays as
        # the shorter ones left it.
        for length, level in enumerate(self._levels[: ids_nt.shape[1]], start=1):
            keys = _pack(ids_nt, length, self.vocab_size)
            known = lower_nt[:, length - 1 :]
            known[...] = level.interpolate(keys, known, self.vocab_size)
        return lower_nt

    def bits_per_token(self, validation_ids: Ids) -> float:
        """Return the mean over all ids but the first of each row; [N, T] or [T]."""
        ids_nt = np.atleast_2d(validation_ids)
        if ids_nt.shape[0] == 1:
            return self._row_bits(ids_nt) / (ids_nt.shape[1] - 1)
        block = max(1, SCORE_BLOCK // ids_nt.shape[1])
        bits = 0.0
        for start in range(0, len(ids_nt), block):
            piece = self.probabilities(ids_nt[start : start + block])
            bits -= float(np.log2(piece[:, 1:]).sum())
        return bits / float(ids_nt[:, 1:].size)

    def _row_bits(self, ids_1t: Ids) -> float:
        """Score a long row in pieces that overlap by the context."""
        context = max(1, len(self._levels) - 1)
        bits = 0.0
        for start in range(1, ids_1t.shape[1], SCORE_BLOCK):
            first = max(0, start - context)
            piece = self.probabilities(ids_1t[:, first : start + SCORE_BLOCK])
            bits -= float(np.log2(piece[:, start - first :]).sum())
        return bits


def _pack(ids: Ids, length: int, vocab_size: int) -> Ids:
    """Return every `length` neighbours along the last axis as one number, oldest id first."""
    num = ids.shape[-1] - length + 1
    keys = ids[..., :num].astype(np.int64)
    for offset in range(1, length):
        keys *= vocab_size
        keys += ids[..., offset : offset + num]
    return keys


def _count(keys: Ids) -> tuple[Ids, Ids]:
    """Return the distinct keys in order and how often each occurs; sorts `keys` in place."""
    # Not np.unique: it would keep two more arrays of this size.
    keys.sort()
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[starts], np.diff(starts, append=len(keys))


def _make_level(keys_u: Ids, counts_u: Ids, vocab_size: int) -> _Level:
    discounts_u = np.array((0.0, *_discounts(counts_u)))[np.minimum(counts_u, 3)]
    contexts_u = keys_u // vocab_size
    starts = np.flatnonzero(np.concatenate(([True], contexts_u[1:] != contexts_u[:-1])))
    totals_c = np.add.reduceat(counts_u, starts)
    totals_u = np.repeat(totals_c, np.diff(starts, append=len(keys_u)))
    return _Level(
        keys_u=keys_u,
        shares_u=(counts_u - discounts_u) / totals_u,
        contexts_c=contexts_u[starts],
        rests_c=np.add.reduceat(discounts_u, starts) / totals_c,
    )


def _discounts(counts_u: Ids) -> tuple[float, float, float]:
    """Return what is taken off counts of 1, of 2, and of 3 and more.

    Source: Chen and Goodman (1999), modified Kneser-Ney smoothing.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts_u == count)) for count in (1, 2, 3, 4))
    if not min(n1, n2, n3, n4):
        return DEFAULT_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    estimates = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    d1, d2, d3 = (
        min(max(MIN_DISCOUNT, d), float(count)) for count, d in enumerate(estimates, start=1)
    )
    return d1, d2, d3


def _look_up(keys: Ids, values: Floats, wanted: Ids, *, missing: float) -> Floats:
    """Return the values of `wanted` in the sorted `keys`."""
    positions = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[positions] == wanted, values[positions], missing)
