"""Tokenizers of characters and of bytes, and what every tokenizer can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

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
COUNT_BLOCK = 2**18

TokenArray = NDArray[np.uint16]


class Tokenizer(ABC):
    """Text to ids and back.

    `PAD_ID` stands at the end of every document, where it tells the model that what follows has
    nothing to do with what came before.

    Attributes:
        kind: Name on the command line and in checkpoints.
        unit: What one id stands for, for messages.
        vocab_size: Number of ids in use, special ones included.
    """

    kind: str
    unit: str
    vocab_size: int

    @abstractmethod
    def encode_array(self, text: str) -> TokenArray:
        """Return the ids of a text, vectorised."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids; special ids give nothing or a replacement character."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, of a prompt for example."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def to_dict(self) -> dict[str, Any]:
        """Return plain values from which `tokenizer_from_dict` makes the same tokenizer."""
        return {"kind": self.kind, "vocab_size": self.vocab_size}


class UnitTokenizer(Tokenizer):
    """A tokenizer with one id per item of the text, which can be encoded from any item on."""

    @abstractmethod
    def raw(self, document: str) -> str | bytes:
        """Return the document as a sequence with one item per id, so that it can be cut."""

    @abstractmethod
    def encode_raw(self, raw: str | bytes) -> list[int]:
        """Return the ids of a raw piece, one item at a time in plain Python."""


class CharTokenizer(UnitTokenizer):
    """One id per character, the most frequent first, after UNK (0) and PAD (1)."""

    kind = "char"
    unit = "char"

    def __init__(self, characters: str) -> None:
        """Use `characters` as ids 2, 3, ...

        Raises:
            ConfigError: There are more of them than ids can be stored.
        """
        self.characters = characters
        self.vocab_size = len(characters) + NUM_SPECIAL
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise ConfigError(
                f"vocab_size must be at most {MAX_VOCAB_SIZE}, got {self.vocab_size} (the "
                "characters, UNK and PAD)"
            )
        self._id_of = {char: i for i, char in enumerate(characters, start=NUM_SPECIAL)}
        self._table = np.full(NUM_CODE_POINTS, UNKNOWN_ID, dtype=np.uint16)
        self._table[_code_points(characters)] = np.arange(
            NUM_SPECIAL, self.vocab_size, dtype=np.uint16
        )

    def raw(self, document: str) -> str:
        """Return the document itself."""
        return document

    def encode_raw(self, raw: str | bytes) -> list[int]:
        """Look up each character."""
        assert isinstance(raw, str)
        id_of = self._id_of
        return [id_of.get(char, UNKNOWN_ID) for char in raw]

    def encode_array(self, text: str) -> TokenArray:
        """Look up all code points at once."""
        return self._table[_code_points(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the characters; UNK is U+FFFD and PAD nothing."""
        return "".join(
            self.characters[i - NUM_SPECIAL] if NUM_SPECIAL <= i < self.vocab_size else "\ufffd"
            for i in ids
            if i != PAD_ID
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the characters in the order of their ids."""
        return {**super().to_dict(), "characters": self.characters}


class ByteTokenizer(UnitTokenizer):
    """One id per byte of the UTF-8 text, after UNK (0, never used) and PAD (1)."""

    kind = "byte"
    unit = "byte"
    vocab_size = 256 + NUM_SPECIAL

    def raw(self, document: str) -> bytes:
        """Return the document as UTF-8; a lone surrogate keeps its own three bytes."""
        return document.encode("utf-8", errors="surrogatepass")

    def encode_raw(self, raw: str | bytes) -> list[int]:
        """Shift each byte past the special ids."""
        assert isinstance(raw, bytes)
        return [byte + NUM_SPECIAL for byte in raw]

    def encode_array(self, text: str) -> TokenArray:
        """Shift all bytes at once."""
        return np.frombuffer(self.raw(text), dtype=np.uint8).astype(np.uint16) + np.uint16(
            NUM_SPECIAL
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; incomplete sequences become U+FFFD."""
        content = bytes(i - NUM_SPECIAL for i in ids if i >= NUM_SPECIAL)
        return content.decode("utf-8", errors="replace")


class CharacterCounts:
    """How often each character occurs; only those that occur are sent between processes."""

    def __init__(self) -> None:
        """Start with none."""
        self._counts = np.zeros(NUM_CODE_POINTS, dtype=np.int64)
        self._text: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Count the characters of a text."""
        # Short texts are counted together.
        self._text.append(text)
        self._size += len(text)
        if self._size >= COUNT_BLOCK:
            self._settle()

    def merge(self, other: CharacterCounts, *, sign: int = 1) -> None:
        """Add the counts of another, or take them away with a sign of -1."""
        self._settle()
        other._settle()
        self._counts += sign * other._counts

    def most_frequent(self, count: int) -> str:
        """Return the most frequent characters, equally frequent ones by code point."""
        self._settle()
        used = np.flatnonzero(self._counts)
        ranked = used[np.argsort(-self._counts[used], kind="stable")]
        return "".join(map(chr, ranked[:count].tolist()))

    def _settle(self) -> None:
        counts = np.bincount(_code_points("".join(self._text)))
        self._counts[: len(counts)] += counts
        self._text, self._size = [], 0

    def __getstate__(self) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Return the characters that occur and how often."""
        self._settle()
        used = np.flatnonzero(self._counts)
        return used, self._counts[used]

    def __setstate__(self, state: tuple[NDArray[np.intp], NDArray[np.int64]]) -> None:
        """Take over what `__getstate__` gave."""
        CharacterCounts.__init__(self)
        used, counts = state
        self._counts[used] = counts


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
