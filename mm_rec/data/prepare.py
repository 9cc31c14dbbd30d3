"""From files to token sources: tokenizer, split, and the cache of encoded arrays."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.format import open_memmap

from mm_rec.data.corpus import CorpusFiles, split_documents
from mm_rec.data.tokenizers import PAD_ID, ByteTokenizer, CharTokenizer, Tokenizer
from mm_rec.data.windows import MappedTokens, RawText, TokenSource
from mm_rec.errors import DataError, OutputError

# Raise it when the same corpus and settings would give other ids.
CACHE_VERSION = 1

TokenizerKind = Literal["char", "byte"]
TokenizeMode = Literal["ahead", "on-the-fly"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """A corpus, ready to be cut into windows.

    Attributes:
        key: Names the content, the split and the tokenizer; equal keys mean equal ids.
        train: Ids to train on.
        validation: Ids held out; None without a validation split.
    """

    key: str
    tokenizer: Tokenizer
    train: TokenSource
    validation: TokenSource | None


def default_cache_dir() -> Path:
    """Return where encoded corpora are kept.

    Source: XDG Base Directory Specification, XDG_CACHE_HOME.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mm_rec"


def prepare(
    corpus: CorpusFiles,
    *,
    tokenizer_kind: TokenizerKind = "char",
    vocab_size: int,
    val_split: float = 0.1,
    mode: TokenizeMode = "ahead",
    cache_dir: Path | None = None,
) -> PreparedData:
    """Tokenize a corpus, ahead into a cached memory-mapped array or on the fly.

    Args:
        corpus: The files.
        tokenizer_kind: Characters or bytes.
        vocab_size: Most ids that the character tokenizer may use.
        val_split: Share of the characters to hold out.
        mode: Both give the same ids; the second leaves the work to whoever reads a window.
        cache_dir: Where arrays that were encoded ahead are kept.

    Raises:
        DataError: The corpus is malformed or empty.
        OutputError: The cache cannot be written.
    """
    settings = f"{CACHE_VERSION} {tokenizer_kind} {vocab_size} {val_split!r}"
    key = hashlib.blake2b(
        f"{settings} {corpus.content_hash()}".encode(), digest_size=12
    ).hexdigest()
    if mode == "on-the-fly":
        train, validation = split_documents(corpus.documents(), val_split)
        tokenizer = _make_tokenizer(tokenizer_kind, train, vocab_size)
        return PreparedData(
            key=key,
            tokenizer=tokenizer,
            train=RawText(train, tokenizer),
            validation=RawText(validation, tokenizer) if validation else None,
        )
    directory = cache_dir or default_cache_dir()
    cached = _CacheEntry(directory=directory, key=key)
    if not cached.description.exists():
        train, validation = split_documents(corpus.documents(), val_split)
        cached.write(_make_tokenizer(tokenizer_kind, train, vocab_size), train, validation)
    return cached.read()


def _make_tokenizer(kind: TokenizerKind, documents: Sequence[str], vocab_size: int) -> Tokenizer:
    if kind == "byte":
        return ByteTokenizer()
    return CharTokenizer.from_documents(documents, vocab_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CacheEntry:
    """The files of one prepared corpus.

    Each appears whole or not at all, the description last. Two processes that write at once
    replace each other's files with equal ones.
    """

    directory: Path
    key: str

    @property
    def description(self) -> Path:
        return self.directory / f"{self.key}.json"

    def array(self, part: str) -> Path:
        return self.directory / f"{self.key}.{part}.npy"

    def write(self, tokenizer: Tokenizer, train: Sequence[str], validation: Sequence[str]) -> None:
        description = json.dumps(
            {
                "tokenizer": tokenizer.kind,
                "vocab_size": tokenizer.vocab_size,
                "characters": tokenizer.characters,
                "validation": bool(validation),
            }
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for part, documents in (("train", train), ("validation", validation)):
                if documents:
                    self._publish(
                        self.array(part),
                        partial(_encode_into, tokenizer=tokenizer, documents=documents),
                    )
            self._publish(self.description, partial(_write_text, text=description))
        except OSError as error:
            raise OutputError(
                f"cannot write the token cache {self.directory}: {error.strerror}; "
                "give a writable --cache-dir, or --tokenize on-the-fly"
            ) from error

    def read(self) -> PreparedData:
        try:
            description = json.loads(self.description.read_text(encoding="utf-8"))
            tokenizer: Tokenizer = ByteTokenizer()
            if description["tokenizer"] == CharTokenizer.kind:
                tokenizer = CharTokenizer(description["characters"], description["vocab_size"])
            has_validation = bool(description["validation"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.description} is not a readable token cache, delete it: {error}"
            ) from error
        return PreparedData(
            key=self.key,
            tokenizer=tokenizer,
            train=MappedTokens(self.array("train")),
            validation=MappedTokens(self.array("validation")) if has_validation else None,
        )

    def _publish(self, target: Path, write: Callable[[Path], None]) -> None:
        handle, name = tempfile.mkstemp(dir=self.directory, prefix=".writing-")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _encode_into(path: Path, tokenizer: Tokenizer, documents: Sequence[str]) -> None:
    """Encode the documents one by one into a .npy file, so that memory stays small."""
    length = sum(len(tokenizer.raw(document)) + 1 for document in documents)
    ids = open_memmap(path, mode="w+", dtype=np.uint16, shape=(length,))
    position = 0
    for document in documents:
        encoded = tokenizer.encode_array(document)
        ids[position : position + len(encoded)] = encoded
        ids[position + len(encoded)] = PAD_ID
        position += len(encoded) + 1
    ids.flush()
