"""Which documents are held out, and the text of either part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mm_rec.data.reading import Piece, Report, Wanted, read_task
from mm_rec.data.scratch import scratch_file
from mm_rec.data.survey import Survey

# Rows that are looked at, and sorted, at a time.
BLOCK_ROWS = 2**22
NO_CUT = -1


class Part(Enum):
    """What a document is used for; the values name files."""

    TRAIN = "train"
    VALIDATION = "validation"


class Fragment(NamedTuple):
    """Some text that belongs to one part.

    Attributes:
        part: Which.
        row: Number of the document.
        piece: Number of the piece within the document.
        text: Not empty, unless the document ends here.
        ends: Whether the part's share of the document ends here.
    """

    part: Part
    row: int
    piece: int
    text: str
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """The documents held out for validation.

    Attributes:
        held_out: A flag per document.
        cut_row: The document whose end is held out instead, where no document was small enough.
        cut_at: How many of its characters are trained on.
    """

    held_out: NDArray[np.bool_]
    cut_row: int = NO_CUT
    cut_at: int = 0


def split_documents(table: NDArray[np.void], fraction: float) -> Split:
    """Choose the documents to hold out.

    They are taken in the order of the hashes of their texts, as long as they fit into `fraction`
    of all characters: the choice does not depend on names or on the order of files, and equal
    documents land side by side. Where no document is small enough (a single book), the end of the
    longest one is cut off instead.

    Args:
        table: A row per document, at least one of them not empty.
        fraction: Share of all characters to hold out, in [0, 1).
    """
    lengths = table["length"]
    # A file and not memory, like the table itself.
    with scratch_file() as file:
        # Not a sparse file: on a full disk that would end the process when a flag is set.
        for start in range(0, len(table), BLOCK_ROWS):
            file.write(bytes(min(BLOCK_ROWS, len(table) - start)))
        file.flush()
        held_out = np.memmap(file, dtype=np.bool_, mode="r+", shape=(len(table),))
    budget = int(fraction * int(lengths.sum()))
    left = budget
    num_buckets = -(-len(table) // BLOCK_ROWS)
    for bucket in range(num_buckets if budget else 0):
        rows = _rows_of_bucket(table, bucket, num_buckets, longest=left)
        left -= _take(held_out, rows, lengths[rows], left)
    if not budget or left < budget:
        return Split(held_out=held_out)
    row = _longest(table)
    return Split(held_out=held_out, cut_row=row, cut_at=int(lengths[row]) - budget)


def _rows_of_bucket(
    table: NDArray[np.void], bucket: int, num_buckets: int, *, longest: int
) -> NDArray[np.intp]:
    """Return the rows whose rank lies in one of equal ranges, those that may fit, sorted."""
    width = 2**64 // num_buckets + 1
    first, last = bucket * width, min((bucket + 1) * width, 2**64) - 1
    found = []
    for start in range(0, len(table), BLOCK_ROWS):
        block = table[start : start + BLOCK_ROWS]
        rank, length = block["rank"], block["length"]
        fits = (length > 0) & (length <= longest)
        inside = (rank >= np.uint64(first)) & (rank <= np.uint64(last))
        found.append(np.flatnonzero(fits & inside) + start)
    rows = np.concatenate(found)
    return rows[np.lexsort((table["rest"][rows], table["rank"][rows]))]


def _take(
    held_out: NDArray[np.bool_], rows: NDArray[np.intp], lengths: NDArray[np.int64], left: int
) -> int:
    """Hold out one row after the other, passing over those that do not fit; return the sum."""
    taken = 0
    while len(rows):
        fits = lengths <= left - taken
        rows, lengths = rows[fits], lengths[fits]
        sums = lengths.cumsum()
        count = int(np.searchsorted(sums, left - taken, side="right"))
        held_out[rows[:count]] = True
        taken += int(sums[count - 1]) if count else 0
        rows, lengths = rows[count:], lengths[count:]
    return taken


def _longest(table: NDArray[np.void]) -> int:
    lengths = table["length"]
    rows = np.flatnonzero(lengths == lengths.max())
    return int(rows[np.argmin(table["rank"][rows])])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitCorpus:
    """A corpus whose documents are told apart by part."""

    text_field: str
    survey: Survey
    split: Split

    def tasks_of(self, part: Part) -> list[int]:
        """Return the numbers of the tasks that hold anything of the part."""
        stops = (*self.survey.first_rows[1:], len(self.survey.table))
        numbers = []
        for number, (first, stop) in enumerate(zip(self.survey.first_rows, stops, strict=True)):
            # A task with a part of a document ends with the row it begins with.
            if self._holds(part, first, max(stop, first + 1)):
                numbers.append(number)
        return numbers

    def _holds(self, part: Part, first: int, stop: int) -> bool:
        held_out = self.split.held_out[first:stop]
        if first <= self.split.cut_row < stop:
            return True
        return bool(held_out.any() if part is Part.VALIDATION else not held_out.all())

    def fragments(
        self,
        number: int,
        *,
        report: Report,
        only: Part | None = None,
        wanted: Wanted = lambda row: True,
    ) -> Iterator[Fragment]:
        """Yield the text of one task.

        Args:
            number: Of the task.
            report: Told the number of bytes of each file when it has been read.
            only: Leave the other part out; its documents are not even decoded.
            wanted: Asked with the number of a document whether to decode it.

        Raises:
            DataError: A file cannot be read any more.
        """
        survey, first_row = self.survey, self.survey.first_rows[number]
        last_row, position = -1, 0
        for piece in read_task(
            survey.tasks[number],
            text_field=self.text_field,
            report=report,
            wanted=lambda row: self._has(first_row + row, only) and wanted(first_row + row),
        ):
            if piece.row != last_row:
                last_row, position = piece.row, 0 if piece.row else survey.offsets[number]
            for fragment in self._assign(piece, first_row, position):
                if only is None or fragment.part is only:
                    yield fragment
            position += len(piece.text)

    def _has(self, row: int, only: Part | None) -> bool:
        if not self.survey.table["length"][row]:
            return False
        if only is None or row == self.split.cut_row:
            return True
        return bool(self.split.held_out[row]) == (only is Part.VALIDATION)

    def _assign(self, piece: Piece, first_row: int, position: int) -> Iterator[Fragment]:
        row = first_row + piece.row
        if row != self.split.cut_row:
            part = Part.VALIDATION if self.split.held_out[row] else Part.TRAIN
            yield Fragment(part, row, piece.number, piece.text, piece.ends)
            return
        head = max(0, self.split.cut_at - position)
        if head:
            # The training part's share ends at the cut, wherever the document ends.
            reaches = position + len(piece.text) >= self.split.cut_at
            yield Fragment(Part.TRAIN, row, piece.number, piece.text[:head], reaches)
        if piece.text[head:] or piece.ends:
            yield Fragment(Part.VALIDATION, row, piece.number, piece.text[head:], piece.ends)
