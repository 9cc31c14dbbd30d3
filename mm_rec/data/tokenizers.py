"""Text to ids and back: characters, bytes, or byte pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_rec.errors import ConfigError

UNKNOWN_ID = 0
PAD_ID = 1
NUM_SPECIAL = 2
NUM_BYTES = 256
NUM_CODE_POINTS = 0x110000
# Ids are stored as uint16, half the size on disk and in the page cache of anything wider.
MAX_VOCAB_SIZE = 2**16
# The library for byte pairs takes some 200 bytes of memory per byte of text.
STRETCH_CHARACTERS = 2**16

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
        """Return the ids of a text."""

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
    """One id per character, the most frequent first, after UNK (0) and PAD (1).

    Args:
        characters: Have the ids 2, 3, ...

    Raises:
        ConfigError: There are more of them than ids can be stored.
    """

    kind = unit = "char"

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.vocab_size = len(characters) + NUM_SPECIAL
        _check_vocab_size(self.vocab_size)
        self._id_of = {char: i for i, char in enumerate(characters, start=NUM_SPECIAL)}
        self._table = np.full(NUM_CODE_POINTS, UNKNOWN_ID, dtype=np.uint16)
        self._table[_code_points(characters)] = np.arange(
            NUM_SPECIAL, self.vocab_size, dtype=np.uint16
        )

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> CharTokenizer:
        """Take the most frequent characters, equally frequent ones by code point."""
        counts = np.zeros(NUM_CODE_POINTS, dtype=np.int64)
        for text in texts:
            found = np.bincount(_code_points(text))
            counts[: len(found)] += found
        used = np.flatnonzero(counts)
        ranked = used[np.argsort(-counts[used], kind="stable")]
        return cls("".join(map(chr, ranked[: vocab_size - NUM_SPECIAL].tolist())))

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

    kind = unit = "byte"
    vocab_size = NUM_BYTES + NUM_SPECIAL

    def raw(self, document: str) -> bytes:
        """Return the document as UTF-8."""
        return document.encode("utf-8", errors="surrogatepass")

    def encode_raw(self, raw: str | bytes) -> list[int]:
        """Shift each byte past the special ids."""
        assert isinstance(raw, bytes)
        return [byte + NUM_SPECIAL for byte in raw]

    def encode_array(self, text: str) -> TokenArray:
        """Shift all bytes at once."""
        content = np.frombuffer(self.raw(text), dtype=np.uint8)
        return content.astype(np.uint16) + np.uint16(NUM_SPECIAL)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; incomplete sequences become U+FFFD."""
        content = bytes(i - NUM_SPECIAL for i in ids if i >= NUM_SPECIAL)
        return content.decode("utf-8", errors="replace")


class BpeTokenizer(Tokenizer):
    """Byte pairs of the `tokenizers` library, its ids after UNK (0, never used) and PAD (1).

    Any text can be encoded, and decoding gives it back.

    Args:
        library: The library's own JSON description.

    Raises:
        ConfigError: The library is missing, or does not understand the description.
    """

    kind = "bpe"
    unit = "token"

    def __init__(self, library: str) -> None:
        check_library()
        from tokenizers import Tokenizer as LibraryTokenizer

        try:
            self._library = LibraryTokenizer.from_str(library)
        # The library raises nothing more special.
        except Exception as error:
            raise ConfigError(f"not a description of the tokenizers library: {error}") from error
        self._description = library
        self.vocab_size = self._library.get_vocab_size() + NUM_SPECIAL
        _check_vocab_size(self.vocab_size)

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> BpeTokenizer:
        """Learn merges from texts, until there are `vocab_size` ids or nothing to merge.

        It starts threads: see `prepare`.
        """
        from tokenizers import Tokenizer as LibraryTokenizer
        from tokenizers import decoders, models, pre_tokenizers, trainers

        library = LibraryTokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - NUM_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        return cls(library.to_str())

    def encode_array(self, text: str) -> TokenArray:
        """Encode in stretches, by several threads where there is more than one."""
        clean = text.encode("utf-8", errors="replace").decode("utf-8")
        stretches = [
            clean[start : start + STRETCH_CHARACTERS]
            for start in range(0, len(clean), STRETCH_CHARACTERS)
        ]
        ids = [i for found in self._library.encode_batch_fast(stretches) for i in found.ids]
        return np.array(ids, dtype=np.uint16) + np.uint16(NUM_SPECIAL)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; incomplete sequences become U+FFFD."""
        text: str = self._library.decode([i - NUM_SPECIAL for i in ids if i >= NUM_SPECIAL])
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the library's description."""
        return {**super().to_dict(), "library": self._description}


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
            return BpeTokenizer(values["library"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"not the description of a tokenizer: {error!r}") from error
    raise ConfigError(f"the tokenizer kind must be char, byte or bpe, got {kind!r}")


def check_vocabulary(kind: str, vocab_size: int) -> None:
    """Check that such a tokenizer is possible, before the corpus is read.

    Raises:
        ConfigError: It is not.
    """
    if not NUM_SPECIAL < vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(
            f"vocab_size must lie between {NUM_SPECIAL + 1} and {MAX_VOCAB_SIZE}, got {vocab_size}"
        )
    if kind == BpeTokenizer.kind:
        if vocab_size < NUM_BYTES + NUM_SPECIAL:
            raise ConfigError(
                f"--tokenizer bpe needs a vocabulary of at least {NUM_BYTES + NUM_SPECIAL} (the "
                f"bytes, UNK and PAD), got {vocab_size}: raise --vocab-size"
            )
        check_library()


def check_library() -> None:
    """Check that the library for byte pairs is installed.

    Raises:
        ConfigError: It is not.
    """
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--tokenizer bpe needs the tokenizers library: pip install 'autotune[bpe]'"
        ) from error


def _check_vocab_size(vocab_size: int) -> None:
    if vocab_size > MAX_VOCAB_SIZE:
        raise ConfigError(
            f"vocab_size must be at most {MAX_VOCAB_SIZE} with UNK and PAD, got {vocab_size}"
        )


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
