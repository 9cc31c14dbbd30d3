"""Documents: from the Python standard library's sources, or from text files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mm_rec.errors import DataError

TEXT_SUFFIXES = (".txt", ".jsonl")
ALLOWED = ".txt, .jsonl, .txt.gz or .jsonl.gz"
SKIPPED_FOLDERS = ("site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFiles:
    """The bytes of a corpus, read but not yet decoded.

    Attributes:
        files: Path and content of every file, in a fixed order.
        text_field: Field of a .jsonl object that holds its text.
    """

    files: tuple[tuple[Path, bytes], ...]
    text_field: str

    def content_hash(self) -> str:
        """Return a hash of everything that decides the documents; paths are not part of it."""
        digest = hashlib.blake2b(self.text_field.encode(), digest_size=16)
        for path, content in self.files:
            kind = "".join(path.suffixes[-2:])
            digest.update(f"\0{kind}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    def documents(self) -> tuple[str, ...]:
        """Decode every file into its documents; empty ones are left out.

        Raises:
            DataError: A .gz or .jsonl file is malformed, or there is no text at all.
        """
        documents = tuple(
            text for path, content in self.files for text in self._decode(path, content) if text
        )
        if not documents:
            raise DataError(f"the data hold no text ({len(self.files)} files read): give --data")
        return documents

    def _decode(self, path: Path, content: bytes) -> Iterator[str]:
        suffix = path.suffix
        if suffix == ".gz":
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path} is not a readable .gz file: {error}") from error
            suffix = path.with_suffix("").suffix
        # Sources in other encodings exist in every large collection; a replacement character in
        # their place is better than no training.
        text = content.decode("utf-8", errors="replace")
        if suffix == ".jsonl":
            yield from self._decode_lines(path, text)
        else:
            yield text

    def _decode_lines(self, path: Path, text: str) -> Iterator[str]:
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is not a JSON object: {error}") from error
            document = value.get(self.text_field) if isinstance(value, dict) else None
            if not isinstance(document, str):
                raise DataError(
                    f"{path}:{number} has no text in the field '{self.text_field}': "
                    "name the right one with --text-field"
                )
            yield document


def read_corpus(paths: Sequence[Path] = (), *, text_field: str = "text") -> CorpusFiles:
    """Read the files of a corpus.

    Args:
        paths: Files or directories of .txt and .jsonl, each also with .gz; directories are
            searched in full. None given: the sources of Python's standard library.
        text_field: Field of a .jsonl object that holds its text.

    Raises:
        DataError: A path is missing, unreadable, or of another kind, or nothing was found.
    """
    found = [file for path in paths for file in _find(path)] if paths else _standard_library()
    if not found:
        places = ", ".join(str(path) for path in paths) or "the standard library"
        raise DataError(f"no {ALLOWED} file in {places}: give --data files or directories")
    try:
        files = tuple((file, file.read_bytes()) for file in found)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    return CorpusFiles(files=files, text_field=text_field)


def _standard_library() -> list[Path]:
    found: list[Path] = []
    # Not rglob: it would walk through all installed packages only to leave them out.
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def _find(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if _is_text(file) and file.is_file())
    if not path.exists():
        raise DataError(f"--data {path} does not exist")
    if not _is_text(path):
        raise DataError(f"--data {path} is not a {ALLOWED} file")
    return [path]


def _is_text(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix == ".gz" else path
    return name.suffix in TEXT_SUFFIXES


def split_documents(
    documents: Sequence[str], fraction: float, *, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the training and the validation documents, both in their original order.

    Documents enter the validation part in the order of a hash of their text, as long as they fit
    into `fraction` of all characters: the choice does not depend on names or on the order of
    files, and equal documents land side by side. Where no document is small enough (a single
    book), the end of the longest one is cut off instead.

    Args:
        documents: At least one non-empty text.
        fraction: Share of all characters to keep for validation, in [0, 1).
        seed: Another seed chooses other documents.
    """
    budget = int(fraction * sum(len(document) for document in documents))
    if budget < 1:
        return tuple(documents), ()
    chosen: set[int] = set()
    left = budget
    for index in sorted(range(len(documents)), key=lambda i: _rank(documents[i], seed)):
        if len(documents[index]) <= left:
            chosen.add(index)
            left -= len(documents[index])
    if not chosen:
        longest = max(range(len(documents)), key=lambda i: len(documents[i]))
        cut = len(documents[longest]) - budget
        head = (*documents[:longest], documents[longest][:cut], *documents[longest + 1 :])
        return tuple(text for text in head if text), (documents[longest][cut:],)
    training = tuple(text for i, text in enumerate(documents) if i not in chosen)
    return training, tuple(documents[i] for i in sorted(chosen))


def _rank(document: str, seed: int) -> bytes:
    content = document.encode("utf-8", errors="surrogatepass")
    return hashlib.blake2b(content, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
