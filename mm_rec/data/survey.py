"""The first pass over a corpus: which documents there are, and how often each character occurs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mm_rec.data.corpus import CorpusFiles
from mm_rec.data.passes import Passes
from mm_rec.data.plan import Task
from mm_rec.data.reading import Report, read_task
from mm_rec.data.scratch import scratch_file
from mm_rec.data.tokenizers import CharacterCounts
from mm_rec.errors import DataError

# A row per document. The first two fields are the halves of the hash of its text; the first of
# them decides whether it is held out.
ROW = np.dtype([("rank", "<u8"), ("rest", "<u8"), ("length", "<i8")])
LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """What one pass over a corpus tells.

    Attributes:
        content_hash: Of the documents in their order; paths and kinds of files are not part of it.
        num_characters: In all documents.
        table: A `ROW` per document, lengths in characters; memory-mapped, since a large corpus has
            many documents.
        tasks: How the corpus is cut.
        first_rows: Per task, the row of its first document.
        offsets: Per task, how many characters of its first document earlier tasks hold.
        counts: Occurrences per character; None where they were not asked for.
    """

    content_hash: str
    num_characters: int
    table: NDArray[np.void]
    tasks: tuple[Task, ...]
    first_rows: tuple[int, ...]
    offsets: tuple[int, ...]
    counts: CharacterCounts | None


def survey_corpus(
    corpus: CorpusFiles,
    tasks: Sequence[Task],
    *,
    count_characters: bool,
    passes: Passes,
) -> Survey:
    """Read a corpus once.

    Raises:
        DataError: A file cannot be read or is malformed, or there is no text at all.
        OutputError: There is no room for the table of documents among the temporary files.
    """

    def survey_task(task: Task, report: Report) -> _TaskSurvey:
        return _survey_task(
            task, text_field=corpus.text_field, count_characters=count_characters, report=report
        )

    with scratch_file() as file:
        collector = _Collector(file, counts=CharacterCounts() if count_characters else None)
        passes.run("reading", survey_task, tasks, collector.add)
        if not collector.num_characters:
            raise DataError(f"the data hold no text ({len(corpus.files)} files read): give --data")
        return collector.result(tasks)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _TaskSurvey:
    """Rows of whole documents, or the hashes and the length of a part of one."""

    rows: bytes
    hashes: bytes
    length: int
    is_part: bool
    ends: bool
    counts: CharacterCounts | None


def _survey_task(
    task: Task, *, text_field: str, count_characters: bool, report: Report
) -> _TaskSurvey:
    counts = CharacterCounts() if count_characters else None
    rows = bytearray()
    hashes, length, ends = b"", 0, False
    is_part = task[0].is_part
    for piece in read_task(task, text_field=text_field, report=report):
        if counts is not None:
            counts.add(piece.text)
        content = piece.text.encode("utf-8", errors="surrogatepass")
        hashes += hashlib.blake2b(content, digest_size=16).digest()
        length += len(piece.text)
        ends = piece.ends
        if ends and not is_part:
            rows += _row(hashes, length)
            hashes, length = b"", 0
    return _TaskSurvey(
        rows=bytes(rows), hashes=hashes, length=length, is_part=is_part, ends=ends, counts=counts
    )


def _row(hashes: bytes, length: int) -> bytes:
    digest = hashlib.blake2b(hashes, digest_size=16).digest()
    return digest + length.to_bytes(LENGTH_BYTES, "little")


class _Collector:
    """Puts the results of the tasks together, in their order."""

    def __init__(self, file: BinaryIO, *, counts: CharacterCounts | None) -> None:
        self._file = file
        self._counts = counts
        self._hash = hashlib.blake2b(digest_size=16)
        self._num_rows = 0
        self._first_rows: list[int] = []
        self._offsets: list[int] = []
        self._hashes, self._length = b"", 0
        self.num_characters = 0

    def add(self, result: _TaskSurvey) -> None:
        self._first_rows.append(self._num_rows)
        self._offsets.append(self._length)
        if self._counts is not None and result.counts is not None:
            self._counts.merge(result.counts)
        if result.is_part:
            self._hashes += result.hashes
            self._length += result.length
            if result.ends:
                self._write(_row(self._hashes, self._length))
                self._hashes, self._length = b"", 0
        else:
            self._write(result.rows)

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        rows = np.frombuffer(content, dtype=ROW)
        # An empty document leaves no trace in the ids.
        self._hash.update(rows[rows["length"] > 0].tobytes())
        self._num_rows += len(rows)
        self.num_characters += int(rows["length"].sum())

    def result(self, tasks: Sequence[Task]) -> Survey:
        self._file.flush()
        return Survey(
            content_hash=self._hash.hexdigest(),
            num_characters=self.num_characters,
            table=np.memmap(self._file, dtype=ROW, mode="r", shape=(self._num_rows,)),
            tasks=tuple(tasks),
            first_rows=tuple(self._first_rows),
            offsets=tuple(self._offsets),
            counts=self._counts,
        )
