"""The files of a corpus: the sources of Python's standard library, or text files."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mm_rec.errors import DataError

TEXT_SUFFIXES = (".txt", ".jsonl")
ALLOWED = ".txt, .jsonl, .txt.gz or .jsonl.gz"
INSTALLED_OR_COMPILED = ("site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file, as it was when the corpus was listed.

    Attributes:
        path: Where it is, absolute; a plain string, since there may be very many.
        num_bytes: Its size on disk.
        mtime_ns: When it was last written, in nanoseconds since the epoch.
    """

    path: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFiles:
    """The list of a corpus' files; what they hold is read later, in pieces.

    Attributes:
        files: In a fixed order, which is that of the documents.
        text_field: Field of a .jsonl object that holds its text.
    """

    files: tuple[SourceFile, ...]
    text_field: str

    @property
    def num_bytes(self) -> int:
        """Size of all files on disk."""
        return sum(file.num_bytes for file in self.files)

    def signature(self) -> str:
        """Return a hash of names, sizes and times: equal ones mean that nothing was written."""
        digest = hashlib.blake2b(self.text_field.encode(), digest_size=16)
        for file in self.files:
            digest.update(os.fsencode(f"\0{file.path}\0{file.num_bytes}\0{file.mtime_ns}"))
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Compare every file with the list.

        Raises:
            DataError: A file was written or removed since.
        """
        for file in self.files:
            if _describe(Path(file.path)) != file:
                raise DataError(f"{file.path} was written while it was being read: start again")


def read_corpus(paths: Sequence[Path] = (), *, text_field: str = "text") -> CorpusFiles:
    """List the files of a corpus with their sizes and times.

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
        found = _walk(
            sysconfig.get_path("stdlib"),
            lambda name: name.endswith(".py"),
            skipped=INSTALLED_OR_COMPILED,
        )
    if not found:
        places = ", ".join(str(path) for path in paths) or "the standard library"
        raise DataError(f"no {ALLOWED} file in {places}: give --data files or directories")
    return CorpusFiles(files=tuple(found), text_field=text_field)


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
    """Return the wanted files below a folder, sorted by their paths."""
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
    return sorted(found, key=lambda file: file.path)


def _describe(path: Path) -> SourceFile:
    try:
        return _source_file(str(path.absolute()), path.stat())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _source_file(path: str, status: os.stat_result) -> SourceFile:
    return SourceFile(path=path, num_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


def _is_text(name: str) -> bool:
    return name.removesuffix(".gz").endswith(TEXT_SUFFIXES)
