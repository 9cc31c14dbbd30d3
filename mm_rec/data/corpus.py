"""The files of a corpus, and the documents in them as streams of bounded pieces."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO, cast

from mm_rec.errors import DataError

TEXT_SUFFIXES = (".txt", ".jsonl")
ALLOWED = ".txt, .jsonl, .txt.gz or .jsonl.gz"
INSTALLED_OR_COMPILED = ("site-packages", "dist-packages", "__pycache__")
PIECE_CHARACTERS = 2**20
# A line of a .jsonl file is parsed as a whole.
MAX_LINE_CHARACTERS = 2**26


class SourceFile(NamedTuple):
    """A file as it was found."""

    path: str
    num_bytes: int
    mtime_ns: int


class Piece(NamedTuple):
    """Some text of one document.

    Attributes:
        text: At most `PIECE_CHARACTERS`, not empty.
        begins: Whether the document begins here.
        ends: Whether it ends here.
    """

    text: str
    begins: bool
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The list of a corpus' files; what they hold is read later, a piece at a time.

    Attributes:
        files: In the order of the documents.
        text_field: Field of a .jsonl object that holds its text.
    """

    files: tuple[SourceFile, ...]
    text_field: str = "text"

    @property
    def num_bytes(self) -> int:
        """Size of all files on disk."""
        return sum(file.num_bytes for file in self.files)

    def signature(self) -> str:
        """A hash of names, sizes and times: equal ones mean that nothing was written."""
        digest = hashlib.blake2b(self.text_field.encode(), digest_size=16)
        for file in self.files:
            digest.update(os.fsencode(f"\0{file.path}\0{file.num_bytes}\0{file.mtime_ns}"))
        return digest.hexdigest()

    def pieces(self) -> Iterator[Piece]:
        """The text of all documents that are not empty, in order.

        Raises:
            DataError: A file cannot be read, is malformed, or was written since it was listed.
        """
        for file in self.files:
            if _describe(Path(file.path)) != file:
                raise DataError(f"{file.path} was written while it was being read: start again")
            try:
                with _open(file.path) as stream:
                    if file.path.removesuffix(".gz").endswith(".jsonl"):
                        for text in _texts(file.path, stream, self.text_field):
                            yield from _cut(text)
                    else:
                        yield from _stream(stream)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{file.path} is not a readable .gz file: {error}") from error
            except OSError as error:
                raise DataError(f"cannot read {file.path}: {error.strerror}") from error


def read_corpus(paths: Sequence[Path] = (), *, text_field: str = "text") -> Corpus:
    """List the files of a corpus.

    Args:
        paths: Files or directories of .txt and .jsonl, each also with .gz; directories are
            searched in full. None given: the sources of Python's standard library.
        text_field: Field of a .jsonl object that holds its text.

    Raises:
        DataError: A path is missing or of another kind, or nothing was found.
    """
    if paths:
        found = [file for path in paths for file in _find(path)]
    else:
        library = sysconfig.get_path("stdlib")
        found = _walk(library, lambda name: name.endswith(".py"), skipped=INSTALLED_OR_COMPILED)
    if not found:
        places = ", ".join(str(path) for path in paths) or "the standard library"
        raise DataError(f"no {ALLOWED} file in {places}: give --data files or directories")
    return Corpus(files=tuple(found), text_field=text_field)


def _find(path: Path) -> list[SourceFile]:
    if path.is_dir():
        return _walk(str(path.absolute()), _is_text)
    if not path.exists():
        raise DataError(f"--data {path} does not exist")
    if not _is_text(path.name):
        raise DataError(f"--data {path} is not a {ALLOWED} file")
    return [_describe(path)]


def _walk(
    folder: str, is_wanted: Callable[[str], bool], *, skipped: tuple[str, ...] = ()
) -> list[SourceFile]:
    """The wanted files below a folder, sorted by their paths."""
    found: list[SourceFile] = []
    folders = [folder]
    try:
        while folders:
            # Not rglob: it makes a Path of everything, which takes most of a start.
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders += [] if entry.name in skipped else [entry.path]
                    elif is_wanted(entry.name) and entry.is_file():
                        found.append(_source_file(entry.path, entry.stat()))
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    return sorted(found)


def _is_text(name: str) -> bool:
    return name.removesuffix(".gz").endswith(TEXT_SUFFIXES)


def _describe(path: Path) -> SourceFile:
    try:
        return _source_file(str(path.absolute()), path.stat())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _source_file(path: str, status: os.stat_result) -> SourceFile:
    return SourceFile(path=path, num_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


def _open(path: str) -> TextIO:
    # Sources in other encodings exist in every large collection; a replacement character in their
    # place is better than no training. Line ends stay as they are.
    opened = gzip.open if path.endswith(".gz") else open
    return cast("TextIO", opened(path, "rt", encoding="utf-8", errors="replace", newline="\n"))


def _stream(stream: TextIO) -> Iterator[Piece]:
    text, begins = stream.read(PIECE_CHARACTERS), True
    while text:
        following = stream.read(PIECE_CHARACTERS)
        yield Piece(text, begins, not following)
        text, begins = following, False


def _cut(text: str) -> Iterator[Piece]:
    for start in range(0, len(text), PIECE_CHARACTERS):
        stop = start + PIECE_CHARACTERS
        yield Piece(text[start:stop], start == 0, stop >= len(text))


def _texts(path: str, stream: TextIO, field: str) -> Iterator[str]:
    """The texts of a .jsonl file."""
    number = 0
    while line := stream.readline(MAX_LINE_CHARACTERS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARACTERS:
            raise DataError(
                f"{path}:{number} is longer than {MAX_LINE_CHARACTERS:,} characters: cut it into "
                "several documents"
            )
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number} is not a JSON object: {error}") from error
        text = value.get(field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise DataError(
                f"{path}:{number} has no text in the field '{field}': name the right one with "
                "--text-field"
            )
        # JSON can name halves of surrogate pairs, which are no text.
        yield text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
