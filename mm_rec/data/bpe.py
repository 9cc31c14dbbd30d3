"""Byte-pair encoding: learned with the `tokenizers` library, kept as pairs of ids."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mm_rec.data.tokenizers import MAX_VOCAB_SIZE, NUM_SPECIAL, TokenArray, Tokenizer
from mm_rec.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

NUM_BYTES = 256
FIRST_MERGED_ID = NUM_SPECIAL + NUM_BYTES
# The library takes some 200 bytes of memory per byte of text.
ENCODE_CHARACTERS = 2**16
LONE_SURROGATE = re.compile("([\ud800-\udfff])")
PARALLELISM = "TOKENIZERS_PARALLELISM"


class BpeTokenizer(Tokenizer):
    """Ids for bytes and for frequent sequences of them, after UNK (0, never used) and PAD (1).

    Bytes have the ids 2 to 257; each merge joins two ids to the next one, or to an earlier one
    that stands for the same bytes. Any text can be encoded, and decoding gives it back.
    """

    kind = "bpe"
    unit = "token"

    def __init__(self, merges: Sequence[tuple[int, int]]) -> None:
        """Make a tokenizer that applies `merges`, the first ones first.

        Raises:
            ConfigError: A merge names an id that does not exist before it, or there are too many.
        """
        self.merges = tuple((left, right) for left, right in merges)
        self._bytes_of = [b""] * NUM_SPECIAL + [bytes([value]) for value in range(NUM_BYTES)]
        known = {content: i for i, content in enumerate(self._bytes_of) if content}
        for pair in self.merges:
            if not all(NUM_SPECIAL <= i < len(self._bytes_of) for i in pair):
                raise ConfigError(f"merges must name ids that exist before them, got {pair}")
            content = self._bytes_of[pair[0]] + self._bytes_of[pair[1]]
            if content not in known:
                known[content] = len(self._bytes_of)
                self._bytes_of.append(content)
        self.vocab_size = len(self._bytes_of)
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise ConfigError(f"vocab_size must be at most {MAX_VOCAB_SIZE}, got {self.vocab_size}")

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> BpeTokenizer:
        """Learn merges from texts, until there are `vocab_size` ids or nothing to merge.

        Raises:
            ConfigError: The library is missing, or the vocabulary has no room for the bytes.
        """
        check_bpe(vocab_size)
        from tokenizers import Tokenizer as LibraryTokenizer
        from tokenizers import models, pre_tokenizers, trainers

        library = LibraryTokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - NUM_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        with _one_thread():
            library.train_from_iterator((_replace_surrogates(text) for text in texts), trainer)
        return cls(_read_merges(library))

    def encode_array(self, text: str) -> TokenArray:
        """Encode in bounded stretches; a lone surrogate gives its three bytes."""
        ids: list[int] = []
        # Every other item is a surrogate; there are hardly ever any.
        for number, part in enumerate(LONE_SURROGATE.split(text)):
            if number % 2:
                content = part.encode("utf-8", errors="surrogatepass")
                ids += [byte + NUM_SPECIAL for byte in content]
                continue
            with _one_thread():
                for start in range(0, len(part), ENCODE_CHARACTERS):
                    stretch = part[start : start + ENCODE_CHARACTERS]
                    ids += self._library.encode_batch_fast([stretch])[0].ids
        return np.array(ids, dtype=np.uint16)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; incomplete sequences become U+FFFD. Needs no library."""
        content = b"".join(self._bytes_of[i] for i in ids)
        return content.decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """Return the merges as pairs of ids."""
        return {**super().to_dict(), "merges": [list(pair) for pair in self.merges]}

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        _check_library()
        from tokenizers import Tokenizer as LibraryTokenizer
        from tokenizers import models, pre_tokenizers

        names = [_name(content) for content in self._bytes_of]
        vocab = {name: i for i, name in enumerate(names) if name}
        merges = [(names[left], names[right]) for left, right in self.merges]
        library = LibraryTokenizer(models.BPE(vocab=vocab, merges=merges))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return library

    def __getstate__(self) -> dict[str, Any]:
        """Leave the library's object out; it is made again when it is needed."""
        return {name: value for name, value in vars(self).items() if name != "_library"}


def check_bpe(vocab_size: int) -> None:
    """Check that byte-pair encoding is possible.

    Raises:
        ConfigError: The library is missing, or the vocabulary has no room for the bytes.
    """
    if vocab_size < FIRST_MERGED_ID:
        raise ConfigError(
            f"--tokenizer bpe needs a vocabulary of at least {FIRST_MERGED_ID} (the bytes, UNK and "
            f"PAD), got {vocab_size}: raise --vocab-size"
        )
    _check_library()


def _check_library() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--tokenizer bpe needs the tokenizers library: pip install 'autotune[bpe]'"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the library from starting threads, which would outlive the call and forbid forking."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLELISM]
        else:
            os.environ[PARALLELISM] = before


def _replace_surrogates(text: str) -> str:
    return LONE_SURROGATE.sub("\ufffd", text)


def _read_merges(library: tokenizers.Tokenizer) -> list[tuple[int, int]]:
    """Return the library's merges as ids; its own numbering of the bytes is another one."""
    ids = {_name(bytes([value])): value + NUM_SPECIAL for value in range(NUM_BYTES)}
    merges = []
    for left, right in json.loads(library.to_str())["model"]["merges"]:
        merges.append((ids[left], ids[right]))
        ids.setdefault(left + right, len(ids) + NUM_SPECIAL)
    return merges


def _byte_names() -> str:
    """Return the character by which the library's models know each byte.

    Printable bytes of Latin-1 stand for themselves; the others, in their order, for the characters
    from U+0100 on.

    Source: the ByteLevel pre-tokenizer of https://huggingface.co/docs/tokenizers.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(i if i in printable else next(others)) for i in range(NUM_BYTES))


BYTE_NAMES = _byte_names()


def _name(content: bytes) -> str:
    return "".join(BYTE_NAMES[byte] for byte in content)
