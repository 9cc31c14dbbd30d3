"""The prompt of a text to be generated: given, from a file, or from stdin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mm_rec.data.bpe import ENCODE_CHARACTERS
from mm_rec.data.tokenizers import UNKNOWN_ID, Tokenizer
from mm_rec.errors import DataError

STDIN = "-"
STDIN_DESCRIPTOR = 0
NUM_NAMED = 10


class Prompt:
    """The token ids of a prompt, in parts, each read from the file when it is asked for.

    Attributes:
        num_tokens: Ids given so far.
        unknown: Characters so far that the tokenizer does not know.
    """

    def __init__(self, tokenizer: Tokenizer, *, text: str = "", file: str | None = None) -> None:
        """Take the prompt from `file`, or where that is None `text`, of which "-" means stdin."""
        self.num_tokens = 0
        self.unknown: list[str] = []
        self._tokenizer = tokenizer
        self._text = text
        self._file = file

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the ids.

        Raises:
            DataError: The file cannot be read, or is not text.
        """
        for text in self._texts():
            ids = self._tokenizer.encode(text)
            if UNKNOWN_ID in ids:
                self._note_unknown(text)
            self.num_tokens += len(ids)
            yield ids

    def describe_unknown(self) -> str:
        """Return what is to be said about unknown characters."""
        named = " ".join(map(repr, self.unknown[:NUM_NAMED]))
        others = " and others" if len(self.unknown) > NUM_NAMED else ""
        return f"characters of the prompt that the model has never seen: {named}{others}"

    def _texts(self) -> Iterator[str]:
        if self._file is None and self._text != STDIN:
            if self._text:
                yield self._text
            return
        name = "from stdin" if self._file is None else self._file
        try:
            with self._open() as file:
                # Byte pairs are not found across these parts in the training text either.
                while text := file.read(ENCODE_CHARACTERS):
                    yield text
        except UnicodeDecodeError as error:
            raise DataError(f"the prompt {name} is not UTF-8 text: {error.reason}") from error
        except OSError as error:
            raise DataError(f"cannot read the prompt {name}: {error.strerror}") from error

    def _open(self) -> TextIO:
        # Line ends are left as they are: so are those of the training text.
        if self._file is None:
            return os.fdopen(STDIN_DESCRIPTOR, encoding="utf-8", newline="", closefd=False)
        return Path(self._file).open(encoding="utf-8", newline="")

    def _note_unknown(self, text: str) -> None:
        for character in dict.fromkeys(text):
            is_known = UNKNOWN_ID not in self._tokenizer.encode(character)
            if not is_known and character not in self.unknown:
                self.unknown.append(character)
