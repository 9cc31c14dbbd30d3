"""The directory that keeps encoded corpora."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mm_rec.data.encoding import EncodedCorpus
from mm_rec.data.shards import ShardedTokens
from mm_rec.data.split import Part
from mm_rec.data.tokenizers import Tokenizer
from mm_rec.data.vocabulary import tokenizer_from_dict
from mm_rec.errors import ConfigError, DataError, OutputError

WRITING_PREFIX = ".writing-"
LOCK_NAME = "lock"
DESCRIPTION_NAME = "description.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedCorpus:
    """An encoded corpus, its shards mapped into memory.

    Attributes:
        tokenizer: Made the ids.
        train: Ids to train on.
        validation: Ids held out; None without a validation split.
        validation_bytes: UTF-8 bytes of the held-out text.
    """

    tokenizer: Tokenizer
    train: ShardedTokens
    validation: ShardedTokens | None
    validation_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCache:
    """A directory with one directory per encoded corpus, named after its key.

    A corpus is written beside its place and appears whole or not at all; where two processes have
    written the same one, the first stays. What killed processes leave is removed by the next one
    that writes.
    """

    directory: Path

    def holds(self, key: str) -> bool:
        """Return whether a corpus is there."""
        return (self.directory / key / DESCRIPTION_NAME).exists()

    def content_of(self, signature: str) -> str | None:
        """Return the hash of the content that files with this signature had, if it is known."""
        with suppress(OSError, UnicodeDecodeError):
            return self._content_file(signature).read_text(encoding="utf-8")
        return None

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give an empty directory to work in; it is gone afterwards.

        Raises:
            OutputError: The cache cannot be written, in here or by the code inside.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            with _locked_directory(self.directory) as directory:
                yield directory
        except OSError as error:
            raise OutputError(
                f"cannot write the token cache {self.directory}: {error.strerror}; "
                "give a writable --cache-dir, or --tokenize on-the-fly"
            ) from error

    def publish(
        self, written: Path, key: str, tokenizer: Tokenizer, encoded: EncodedCorpus
    ) -> None:
        """Describe a corpus whose shards are in the directory `written`, and move it here."""
        description = {
            "tokenizer": tokenizer.to_dict(),
            "shards": {part.value: encoded.shards[part] for part in Part},
            "validation_bytes": encoded.validation_bytes,
        }
        (written / DESCRIPTION_NAME).write_text(json.dumps(description), encoding="utf-8")
        try:
            written.replace(self.directory / key)
        except OSError:
            # Another process was faster.
            if not self.holds(key):
                raise

    def remember(self, working: Path, signature: str, content_hash: str) -> None:
        """Note what files with this signature hold, by way of a file in `working`."""
        file = self._content_file(signature)
        file.parent.mkdir(exist_ok=True)
        temporary = working / signature
        temporary.write_text(content_hash, encoding="utf-8")
        temporary.replace(file)

    def read(self, key: str) -> CachedCorpus:
        """Map a corpus.

        Raises:
            DataError: It is damaged.
        """
        directory = self.directory / key
        try:
            description = json.loads((directory / DESCRIPTION_NAME).read_text(encoding="utf-8"))
            parts = {
                part: ShardedTokens(directory, part.value, description["shards"][part.value])
                for part in Part
            }
            return CachedCorpus(
                tokenizer=tokenizer_from_dict(description["tokenizer"]),
                train=parts[Part.TRAIN],
                validation=parts[Part.VALIDATION] if len(parts[Part.VALIDATION]) else None,
                validation_bytes=int(description["validation_bytes"]),
            )
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise DataError(
                f"{directory} is not a readable token cache, delete it: {error}"
            ) from error

    def _content_file(self, signature: str) -> Path:
        return self.directory / "contents" / signature

    def _remove_leftovers(self) -> None:
        for directory in self.directory.glob(WRITING_PREFIX + "*"):
            # Its owner, or a child of it, holds the lock as long as it lives: unlike a process
            # id, that holds across containers and is never given to another process.
            with suppress(OSError), (directory / LOCK_NAME).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)


@contextmanager
def _locked_directory(parent: Path) -> Iterator[Path]:
    """Give a new directory that is locked, and remove it; nothing but the lock file is in it."""
    while True:
        directory = Path(tempfile.mkdtemp(dir=parent, prefix=WRITING_PREFIX))
        lock_file = directory / LOCK_NAME
        with lock_file.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not lock_file.exists():
                # Another process took it for a leftover before it was locked.
                continue
            try:
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            return
