"""Character and byte tokenizers, each in a plain and a vectorised form with equal results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mm_rec.errors import ConfigError

UNKNOWN_ID = 0
PAD_ID = 1
NUM_SPECIAL = 2
NUM_CODE_POINTS = 0x110000
# Ids are stored as uint16, half the size on disk and in the page cache of anything wider.
MAX_VOCAB_SIZE = 2**16
# Characters counted at once: keeps the counting arrays small and in cache.
COUNT_BLOCK = 2**20

TokenArray = NDArray[np.uint16]


class Tokenizer(ABC):
    """Text to ids and back.

    `PAD_ID` stands at the end of every document, where it tells the model that what follows has
    nothing to do with what came before.

    Attributes:
        kind: Name on the command line and in checkpoints.
        unit: What one id stands for, for figures such as bits per unit.
        vocab_size: Number of ids, special ones included.
        characters: The characters with an id of their own, by id; empty for bytes.
    """

    kind: str
    unit: str
    vocab_size: int
    characters: str = ""

    @abstractmethod
    def raw(self, document: str) -> str | bytes:
        """Return the document as a sequence with one item per id, so that it can be cut."""

    @abstractmethod
    def encode(self, raw: str | bytes) -> list[int]:
        """Return the ids of a raw piece, one item at a time in plain Python."""

    @abstractmethod
    def encode_array(self, document: str) -> TokenArray:
        """Return the ids of a document, vectorised."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids; special ids give nothing or a replacement character."""


class CharTokenizer(Tokenizer):
    """One id per character, the most frequent first, after UNK (0) and PAD (1)."""

    kind = "char"
    unit = "char"

    def __init__(self, characters: str, vocab_size: int) -> None:
        """Use `characters` as ids 2, 3, ... of a vocabulary of `vocab_size`.

        Raises:
            ConfigError: The vocabulary is too small for the characters or too large to store.
        """
        if not len(characters) + NUM_SPECIAL <= vocab_size <= MAX_VOCAB_SIZE:
            raise ConfigError(
                f"vocab_size must lie between {len(characters) + NUM_SPECIAL} (the characters, "
                f"UNK and PAD) and {MAX_VOCAB_SIZE}, got {vocab_size}"
            )
        self.characters = characters
        self.vocab_size = vocab_size
        self._id_of = {char: i for i, char in enumerate(characters, start=NUM_SPECIAL)}
        self._table = np.full(NUM_CODE_POINTS, UNKNOWN_ID, dtype=np.uint16)
        self._table[_code_points(characters)] = np.arange(
            NUM_SPECIAL, NUM_SPECIAL + len(characters), dtype=np.uint16
        )

    @classmethod
    def from_documents(cls, documents: Sequence[str], vocab_size: int) -> CharTokenizer:
        """Rank the characters of `documents` by frequency, then by code point."""
        counts = np.zeros(NUM_CODE_POINTS, dtype=np.int64)
        text: list[str] = []
        size = 0
        for document in documents:
            text.append(document)
            size += len(document)
            if size >= COUNT_BLOCK:
                counts += _count("".join(text))
                text, size = [], 0
        counts += _count("".join(text))
        used = np.flatnonzero(counts)
        ranked = used[np.argsort(-counts[used], kind="stable")]
        kept = ranked[: max(0, vocab_size - NUM_SPECIAL)]
        return cls("".join(map(chr, kept.tolist())), vocab_size)

    def raw(self, document: str) -> str:
        """Return the document itself."""
        return document

    def encode(self, raw: str | bytes) -> list[int]:
        """Look up each character."""
        assert isinstance(raw, str)
        id_of = self._id_of
        return [id_of.get(char, UNKNOWN_ID) for char in raw]

    def encode_array(self, document: str) -> TokenArray:
        """Look up all code points at once."""
        return self._table[_code_points(document)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the characters; UNK is U+FFFD and PAD nothing."""
        last = NUM_SPECIAL + len(self.characters)
        return "".join(
            self.characters[i - NUM_SPECIAL] if NUM_SPECIAL <= i < last else "\ufffd"
            for i in ids
            if i != PAD_ID
        )


class ByteTokenizer(Tokenizer):
    """One id per byte of the UTF-8 text, after UNK (0, never used) and PAD (1)."""

    kind = "byte"
    unit = "byte"
    vocab_size = 256 + NUM_SPECIAL

    def raw(self, document: str) -> bytes:
        """Return the document as UTF-8; a lone surrogate keeps its own three bytes."""
        return document.encode("utf-8", errors="surrogatepass")

    def encode(self, raw: str | bytes) -> list[int]:
        """Shift each byte past the special ids."""
        assert isinstance(raw, bytes)
        return [byte + NUM_SPECIAL for byte in raw]

    def encode_array(self, document: str) -> TokenArray:
        """Shift all bytes at once."""
        return np.frombuffer(self.raw(document), dtype=np.uint8).astype(np.uint16) + np.uint16(
            NUM_SPECIAL
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; incomplete sequences become U+FFFD."""
        content = bytes(i - NUM_SPECIAL for i in ids if i >= NUM_SPECIAL)
        return content.decode("utf-8", errors="replace")


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


def _count(text: str) -> NDArray[np.int64]:
    return np.bincount(_code_points(text), minlength=NUM_CODE_POINTS)
