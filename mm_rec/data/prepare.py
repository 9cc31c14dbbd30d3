"""From files to ids: the split, the tokenizer, and encoded corpora that are kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from filelock import FileLock

from mm_rec.cache_dir import default_cache_dir
from mm_rec.data.child import in_child
from mm_rec.data.corpus import Corpus, Piece
from mm_rec.data.split import Split, split_documents
from mm_rec.data.tokenizers import (
    PAD_ID,
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    UnitTokenizer,
    check_vocabulary,
    tokenizer_from_dict,
)
from mm_rec.data.windows import IDS_DTYPE, Part, RawText, StoredIds, TokenSource
from mm_rec.errors import ConfigError, DataError, OutputError

# Raise it when the same corpus and settings would give other ids.
CACHE_VERSION = 3
DESCRIPTION_NAME, IDS_NAME = "description.json", "ids.u16"
# Text from which byte pairs are learned; more would hardly change them.
SAMPLE_BYTES = 2**24
PAD = PAD_ID.to_bytes(IDS_DTYPE.itemsize, "little")

TokenizerKind = Literal["char", "byte", "bpe"]
TokenizeMode = Literal["ahead", "on-the-fly"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """A corpus, ready to be cut into windows.

    Attributes:
        key: Names the content, the split and the tokenizer; equal keys mean equal ids.
        tokenizer: Made from the training documents.
        train: Ids to train on.
        validation: Ids held out; None without a validation split.
        validation_bytes: UTF-8 bytes of the held-out text, for bits per byte.
    """

    key: str
    tokenizer: Tokenizer
    train: TokenSource
    validation: TokenSource | None
    validation_bytes: float

    @property
    def validation_bytes_per_token(self) -> float:
        """UTF-8 bytes per held-out id, PAD included; 1 without a validation split."""
        if self.validation is None:
            return 1.0
        return self.validation_bytes / len(self.validation)


def prepare(
    corpus: Corpus,
    *,
    tokenizer_kind: TokenizerKind = "char",
    vocab_size: int,
    val_split: float = 0.1,
    mode: TokenizeMode = "ahead",
    cache_dir: Path | None = None,
    show_progress: bool = False,
) -> PreparedData:
    """Tokenize a corpus, ahead into a memory-mapped file or on the fly.

    Ahead, the text is streamed by a child process, of which nothing is left, into an array that
    is kept: where the files have not been written since, they are not even opened again.

    Documents are held out by the hashes of their texts, whatever their order and their names.
    Where none is small enough (a single book), the end of the text is held out instead.

    Args:
        corpus: The files.
        tokenizer_kind: Characters, bytes, or byte-pair encoding (only ahead).
        vocab_size: Most ids that a tokenizer of characters or byte pairs may use.
        val_split: Share of the text to hold out.
        mode: Both give the same ids; the second keeps the text in memory and leaves the work to
            whoever reads a window.
        cache_dir: Where ids that were encoded ahead are kept.
        show_progress: Say on stderr that the corpus is prepared, if it takes more than a moment.

    Raises:
        ConfigError: The tokenizer is not possible.
        DataError: The corpus is malformed or empty.
        OutputError: The cache cannot be written.
    """
    job = _Job(corpus=corpus, kind=tokenizer_kind, vocab_size=vocab_size, val_split=val_split)
    if mode == "on-the-fly":
        check_mode(tokenizer_kind, mode)
        check_vocabulary(tokenizer_kind, vocab_size)
        return job.on_the_fly()
    directory = (cache_dir or default_cache_dir()) / job.name
    if not (directory / DESCRIPTION_NAME).exists():
        check_vocabulary(tokenizer_kind, vocab_size)
        in_child(lambda: job.write(directory), told=_told(corpus) if show_progress else "")
    return _read(directory)


def check_mode(kind: TokenizerKind, mode: TokenizeMode) -> None:
    """Refuse byte pairs on the fly.

    Raises:
        ConfigError: That was asked for.
    """
    if mode == "on-the-fly" and kind == "bpe":
        raise ConfigError(
            "--tokenizer bpe cannot encode a window on its own: use it with --tokenize ahead"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    corpus: Corpus
    kind: TokenizerKind
    vocab_size: int
    val_split: float

    @property
    def _settings(self) -> bytes:
        return f"{CACHE_VERSION} {self.kind} {self.vocab_size} {self.val_split!r} ".encode()

    @property
    def name(self) -> str:
        """Of the directory in the cache."""
        content = self._settings + self.corpus.signature().encode()
        return hashlib.blake2b(content, digest_size=12).hexdigest()

    def write(self, directory: Path) -> None:
        """Encode everything into a directory, which appears whole or not at all."""
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(directory.with_name(f"{directory.name}.lock")):
                # Another process may have been faster, or have been killed at it.
                if not directory.exists():
                    working = directory.with_name(f"{directory.name}.writing")
                    shutil.rmtree(working, ignore_errors=True)
                    working.mkdir()
                    try:
                        self._encode(working)
                        working.replace(directory)
                    finally:
                        shutil.rmtree(working, ignore_errors=True)
        except OSError as error:
            raise OutputError(
                f"cannot write the token cache {directory.parent}: {error.strerror}; give a "
                "writable --cache-dir, or --tokenize on-the-fly"
            ) from error

    def _encode(self, directory: Path) -> None:
        split = split_documents(self.corpus, self.val_split, settings=self._settings)
        tokenizer = self._make_tokenizer(split)
        num_ids = {False: 0, True: 0}
        held_out = directory / "held_out.u16"
        with (directory / IDS_NAME).open("w+b") as train, held_out.open("w+b") as validation:
            files: dict[bool, BinaryIO] = {False: train, True: validation}
            for piece, is_held_out in self._pieces(split):
                ids = tokenizer.encode_array(piece.text)
                content = ids.astype(IDS_DTYPE, copy=False).tobytes() + (PAD if piece.ends else b"")
                files[is_held_out].write(content)
                num_ids[is_held_out] += len(content) // IDS_DTYPE.itemsize
            validation.seek(0)
            shutil.copyfileobj(validation, train)
        held_out.unlink()
        num_train, num_validation = split.lengths(num_ids)
        description = {
            "key": split.key,
            "tokenizer": tokenizer.to_dict(),
            "num_train": num_train,
            "num_validation": num_validation,
            "validation_bytes": split.validation_bytes,
        }
        (directory / DESCRIPTION_NAME).write_text(json.dumps(description), encoding="utf-8")

    def on_the_fly(self) -> PreparedData:
        """Keep the documents as text."""
        split = split_documents(self.corpus, self.val_split, settings=self._settings)
        tokenizer = self._make_tokenizer(split)
        assert isinstance(tokenizer, UnitTokenizer)
        documents: dict[bool, list[str]] = {False: [], True: []}
        text: list[str] = []
        for piece, is_held_out in self._pieces(split):
            text.append(piece.text)
            if piece.ends:
                documents[is_held_out].append("".join(text))
                text = []
        num_ids = {
            part: sum(len(tokenizer.raw(text)) + 1 for text in found)
            for part, found in documents.items()
        }
        num_train, num_validation = split.lengths(num_ids)
        return _parts(
            RawText(documents[False] + documents[True], tokenizer),
            key=split.key,
            tokenizer=tokenizer,
            num_train=num_train,
            num_validation=num_validation,
            validation_bytes=split.validation_bytes,
        )

    def _make_tokenizer(self, split: Split) -> Tokenizer:
        texts = (piece.text for piece, is_held_out in self._pieces(split) if not is_held_out)
        if self.kind == "byte":
            return ByteTokenizer()
        if self.kind == "char":
            return CharTokenizer.train(texts, vocab_size=self.vocab_size)
        return BpeTokenizer.train(
            sample(texts, share=SAMPLE_BYTES / split.num_bytes.sum()), vocab_size=self.vocab_size
        )

    def _pieces(self, split: Split) -> Iterator[tuple[Piece, bool]]:
        """All pieces, and whether each is held out."""
        index = 0
        for piece in self.corpus.pieces():
            yield piece, bool(split.held_out[index])
            index += piece.ends


def sample(texts: Iterator[str], *, share: float) -> Iterator[str]:
    """Some of the texts, evenly spread, which have about a share of all characters."""
    seen = taken = 0
    for text in texts:
        seen += len(text)
        if taken < share * seen:
            taken += len(text)
            yield text


def _read(directory: Path) -> PreparedData:
    """Map an encoded corpus.

    Raises:
        DataError: It is damaged.
    """
    try:
        values = json.loads((directory / DESCRIPTION_NAME).read_text(encoding="utf-8"))
        values["tokenizer"] = tokenizer_from_dict(values["tokenizer"])
        num_ids = values["num_train"] + values["num_validation"]
        return _parts(StoredIds(directory / IDS_NAME, num_ids), **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory} is not a readable token cache, delete it: {error}") from error


def _parts(
    source: TokenSource,
    *,
    key: str,
    tokenizer: Tokenizer,
    num_train: int,
    num_validation: int,
    validation_bytes: float,
) -> PreparedData:
    return PreparedData(
        key=key,
        tokenizer=tokenizer,
        train=Part(source=source, start=0, stop=num_train),
        validation=Part(source=source, start=num_train, stop=num_train + num_validation)
        if num_validation
        else None,
        validation_bytes=validation_bytes,
    )


def _told(corpus: Corpus) -> str:
    return f"preparing {corpus.num_bytes / 1e6:,.0f} MB of text ..."
