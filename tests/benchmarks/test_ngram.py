from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from benchmarks import ngram
from benchmarks.ngram import NgramModel, ngram_bits_per_token

VOCAB_SIZE = 300


def make_ids(length: int, *, seed: int = 0) -> np.ndarray:
    """Ids by a steep distribution, around the id before; the last ones hardly ever occur."""
    rng = np.random.default_rng(seed)
    ids = [0]
    for rank in rng.zipf(1.4, length - 1).tolist():
        ids.append((ids[-1] // 3 + min(rank, VOCAB_SIZE // 2)) % (VOCAB_SIZE - 2))
    return np.array(ids, dtype=np.int64)


def reference(grams: Counter[tuple[int, ...]], context: tuple[int, ...], last: int) -> float:
    """Interpolated modified Kneser-Ney of one id, slowly and straight from the definition."""
    shorter = Counter(gram[1:] for gram in grams)
    lower = reference(shorter, context[1:], last) if context else 1.0 / VOCAB_SIZE
    after = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == context}
    if not after:
        return lower
    num = Counter(grams.values())
    y = num[1] / (num[1] + 2 * num[2])
    discounts = [0.0] + [k - (k + 1) * y * num[k + 1] / num[k] for k in (1, 2, 3)]
    assert all(0.05 <= discounts[k] <= k for k in (1, 2, 3)), "choose another text"
    left = sum(discounts[min(count, 3)] for count in after.values())
    count = after.get(last, 0)
    return (count - discounts[min(count, 3)] + left * lower) / sum(after.values())


def test_probabilities_are_those_of_the_definition() -> None:
    ids = make_ids(2_000)
    trigrams = Counter(zip(ids.tolist(), ids[1:].tolist(), ids[2:].tolist(), strict=False))
    held_out = make_ids(40, seed=1)
    model = NgramModel(ids, order=3, vocab_size=VOCAB_SIZE)
    found = model.probabilities(held_out[None])[0]
    for t in range(2, len(held_out)):
        before, last = tuple(held_out[t - 2 : t].tolist()), int(held_out[t])
        assert found[t] == pytest.approx(reference(trigrams, before, last))


@pytest.mark.parametrize("order", [1, 2, 5])
def test_probabilities_sum_to_one_after_seen_and_unseen_contexts(order: int) -> None:
    model = NgramModel(make_ids(3_000), order=order, vocab_size=VOCAB_SIZE)
    seen = make_ids(50, seed=1)
    unseen = np.full(order - 1, VOCAB_SIZE - 1)
    for context in [seen[i : i + order - 1] for i in range(40)] + [unseen]:
        rows = np.column_stack((np.tile(context, (VOCAB_SIZE, 1)), np.arange(VOCAB_SIZE)))
        last = model.probabilities(rows.astype(np.int64))[:, -1]
        assert last.sum() == pytest.approx(1.0, abs=1e-9)
        assert last.min() > 0.0


def test_unigram_bits_are_close_to_the_entropy() -> None:
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    ids = np.random.default_rng(0).choice(4, 100_000, p=shares)
    entropy = -float((shares * np.log2(shares)).sum())
    bits = ngram_bits_per_token(ids[:50_000], ids[50_000:], order=1, vocab_size=4)
    assert bits == pytest.approx(entropy, abs=0.01)


def test_a_longer_context_helps_where_the_text_depends_on_it() -> None:
    ids = np.tile(np.array([0, 1, 0, 2, 0, 0, 3]), 500)
    bits = [ngram_bits_per_token(ids, ids[:700], order=n, vocab_size=4) for n in (1, 2, 4)]
    assert bits[0] > bits[1] > bits[2]
    assert bits[2] < 0.05


def test_a_row_is_scored_alike_whole_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = NgramModel(make_ids(2_000), order=4, vocab_size=VOCAB_SIZE)
    held_out = make_ids(101, seed=1)
    whole = model.bits_per_token(held_out)
    monkeypatch.setattr(ngram, "SCORE_BLOCK", 7)
    assert model.bits_per_token(held_out) == pytest.approx(whole)


def test_rows_know_nothing_of_each_other() -> None:
    model = NgramModel(make_ids(2_000), order=4, vocab_size=VOCAB_SIZE)
    rows = make_ids(60, seed=1).reshape(3, 20)
    each = [model.bits_per_token(row) for row in rows]
    assert model.bits_per_token(rows) == pytest.approx(math.fsum(each) / 3)


def test_ngrams_that_do_not_fit_into_63_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="63 bits"):
        NgramModel(make_ids(100), order=8, vocab_size=500)
