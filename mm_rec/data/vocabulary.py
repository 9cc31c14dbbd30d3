"""The tokenizer of a corpus, made from its training documents alone."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from mm_rec.data.bpe import BpeTokenizer, check_bpe
from mm_rec.data.passes import Passes
from mm_rec.data.plan import PIECE_BYTES
from mm_rec.data.reading import Report
from mm_rec.data.split import Part, SplitCorpus
from mm_rec.data.tokenizers import (
    MAX_VOCAB_SIZE,
    NUM_SPECIAL,
    ByteTokenizer,
    CharacterCounts,
    CharTokenizer,
    Tokenizer,
)
from mm_rec.errors import ConfigError

TokenizerKind = Literal["char", "byte", "bpe"]

# Characters from which byte-pair merges are learned; more would hardly change the merges.
SAMPLE_CHARACTERS = 2**24


def check_vocabulary(kind: TokenizerKind, vocab_size: int) -> None:
    """Check that such a tokenizer is possible, before the corpus is read.

    Raises:
        ConfigError: It is not.
    """
    if not NUM_SPECIAL < vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(
            f"vocab_size must lie between {NUM_SPECIAL + 1} and {MAX_VOCAB_SIZE}, got {vocab_size}"
        )
    if kind == "bpe":
        check_bpe(vocab_size)


def make_tokenizer(
    kind: TokenizerKind, corpus: SplitCorpus, *, vocab_size: int, passes: Passes
) -> Tokenizer:
    """Make the tokenizer of a corpus with at most `vocab_size` ids.

    Raises:
        DataError: A file cannot be read any more.
    """
    if kind == "byte":
        return ByteTokenizer()
    if kind == "bpe":
        return BpeTokenizer.train(_sample(corpus, passes), vocab_size=vocab_size)
    counts = _training_counts(corpus, passes)
    return CharTokenizer(counts.most_frequent(vocab_size - NUM_SPECIAL))


def tokenizer_from_dict(values: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer whose `to_dict` gave these values.

    Raises:
        ConfigError: They are not those of a tokenizer of this version.
    """
    try:
        kind = values["kind"]
        if kind == ByteTokenizer.kind:
            return ByteTokenizer()
        if kind == CharTokenizer.kind:
            return CharTokenizer(values["characters"])
        if kind == BpeTokenizer.kind:
            return BpeTokenizer([(left, right) for left, right in values["merges"]])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"not the description of a tokenizer: {error!r}") from error
    raise ConfigError(f"the tokenizer kind must be char, byte or bpe, got {kind!r}")


def _training_counts(corpus: SplitCorpus, passes: Passes) -> CharacterCounts:
    """Take the characters of the held-out part from those that the survey has counted.

    Which documents are held out is known only after the survey; they are few, and only they are
    decoded again.
    """

    def count(number: int, report: Report) -> CharacterCounts:
        counts = CharacterCounts()
        for fragment in corpus.fragments(number, report=report, only=Part.VALIDATION):
            counts.add(fragment.text)
        return counts

    training = CharacterCounts()
    assert corpus.survey.counts is not None
    training.merge(corpus.survey.counts)
    passes.run(
        "counting characters",
        count,
        corpus.tasks_of(Part.VALIDATION),
        lambda counts: training.merge(counts, sign=-1),
    )
    return training


def _sample(corpus: SplitCorpus, passes: Passes) -> list[str]:
    """Return training text, all of it or pieces chosen by their documents' hashes."""
    share = SAMPLE_CHARACTERS / corpus.survey.num_characters
    table = corpus.survey.table

    def choose(number: int, report: Report) -> list[str]:
        # A document of one piece is chosen or not before it is decoded.
        def wanted(row: int) -> bool:
            return int(table["length"][row]) > PIECE_BYTES // 4 or _chosen(table[row], 0, share)

        return [
            fragment.text
            for fragment in corpus.fragments(number, report=report, only=Part.TRAIN, wanted=wanted)
            if _chosen(table[fragment.row], fragment.piece, share)
        ]

    texts: list[str] = []
    passes.run("choosing a sample", choose, corpus.tasks_of(Part.TRAIN), texts.extend)
    return texts


def _chosen(row: Any, piece: int, share: float) -> bool:  # noqa: ANN401
    if share >= 1.0:
        return True
    # Hashed again: the rank itself has decided already whether the document is held out.
    content = row.tobytes() + piece.to_bytes(8, "little")
    number = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
    return number < share * 2.0**64
