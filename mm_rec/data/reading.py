"""Documents as streams of bounded pieces."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from mm_rec.data.plan import PIECE_BYTES, Span, Task
from mm_rec.errors import DataError

# A line of a .jsonl file is parsed as a whole.
MAX_LINE_BYTES = 2**26
# A UTF-8 sequence has at most three continuation bytes.
LOOKAHEAD_BYTES = 3

Report = Callable[[int], None]
Wanted = Callable[[int], bool]


class Piece(NamedTuple):
    """Some text of one document.

    Attributes:
        row: Number of the document within its task.
        number: Number of the piece within its document.
        text: At most `PIECE_BYTES` of UTF-8, give or take a character.
        ends: Whether the document ends here.
    """

    row: int
    number: int
    text: str
    ends: bool


def read_task(
    task: Task, *, text_field: str, report: Report, wanted: Wanted = lambda row: True
) -> Iterator[Piece]:
    """Yield the pieces of the wanted documents of a task, empty documents included.

    Args:
        task: What to read.
        text_field: Field of a .jsonl object that holds its text.
        report: Told the number of bytes of each span when it has been read.
        wanted: Asked with the number of a document before the document is decoded.

    Raises:
        DataError: A file cannot be read or is malformed.
    """
    reader = _Reader(text_field=text_field, wanted=wanted)
    for span in task:
        yield from reader.pieces(span)
        report(span.stop - span.start)


class _Reader:
    """Reads spans one after the other and counts their documents."""

    def __init__(self, *, text_field: str, wanted: Wanted) -> None:
        self.text_field = text_field
        self.wanted = wanted
        self.row = 0

    def pieces(self, span: Span) -> Iterator[Piece]:
        path = span.file.path
        try:
            if span.is_lines:
                with _open(span) as stream:
                    yield from self._documents(span, stream)
            else:
                if self.wanted(self.row):
                    with _open(span) as stream:
                        yield from self._text(span, stream)
                self.row += 1
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a readable .gz file: {error}") from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error

    def _text(self, span: Span, stream: BinaryIO) -> Iterator[Piece]:
        stop = None if span.is_gzip else span.stop
        pieces = _cut(stream, start=span.start, stop=stop)
        for number, (content, ends) in enumerate(pieces, start=span.start // PIECE_BYTES):
            # Sources in other encodings exist in every large collection; a replacement character
            # in their place is better than no training.
            yield Piece(self.row, number, content.decode("utf-8", errors="replace"), ends)

    def _documents(self, span: Span, stream: BinaryIO) -> Iterator[Piece]:
        for line_number, line in _lines(span, stream):
            if not line.strip():
                continue
            if self.wanted(self.row):
                text = _parse(span, line_number, line, self.text_field)
                for number, (part, ends) in enumerate(_cut_text(text)):
                    yield Piece(self.row, number, part, ends)
            self.row += 1


def _open(span: Span) -> BinaryIO:
    if span.is_gzip:
        return cast("BinaryIO", gzip.open(span.file.path, "rb"))
    stream = Path(span.file.path).open("rb")  # noqa: SIM115 - whoever calls closes it.
    stream.seek(span.start)
    return stream


def _cut(stream: BinaryIO, *, start: int, stop: int | None) -> Iterator[tuple[bytes, bool]]:
    """Yield the pieces from `start` (where `stream` is) to `stop`, and whether each is the last.

    Piece k holds the bytes from k * PIECE_BYTES to (k + 1) * PIECE_BYTES, both moved forward over
    continuation bytes, so that each decodes by itself.
    """
    buffer = stream.read(PIECE_BYTES + LOOKAHEAD_BYTES)
    skip = _num_continuation(buffer) if start else 0
    while True:
        ends = len(buffer) <= PIECE_BYTES
        tail = buffer[PIECE_BYTES:]
        end = len(buffer) if ends else PIECE_BYTES + _num_continuation(tail)
        yield buffer[skip:end], ends
        start += PIECE_BYTES
        if ends or (stop is not None and start >= stop):
            return
        skip = end - PIECE_BYTES
        buffer = tail + stream.read(PIECE_BYTES + LOOKAHEAD_BYTES - len(tail))


def _num_continuation(content: bytes) -> int:
    """Return how many of the first three bytes are UTF-8 continuation bytes, in a row."""
    head = content[:LOOKAHEAD_BYTES]
    return next((i for i, byte in enumerate(head) if byte & 0xC0 != 0x80), len(head))


def _cut_text(text: str) -> Iterator[tuple[str, bool]]:
    # A character takes at most four bytes, three for a lone surrogate.
    if 4 * len(text) <= PIECE_BYTES:
        yield text, True
        return
    content = io.BytesIO(text.encode("utf-8", errors="surrogatepass"))
    for part, ends in _cut(content, start=0, stop=None):
        yield part.decode("utf-8", errors="surrogatepass"), ends


def _lines(span: Span, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that begin in the span, numbered from 1 within it."""
    position = span.start
    if position:
        # Whether a line begins right here is told by the byte before.
        stream.seek(position - 1)
        position += _skip_line(stream) - 1
    number = 0
    while span.is_gzip or position < span.stop:
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{_place(span, number)} is longer than {MAX_LINE_BYTES:,} bytes: "
                "cut it into several documents"
            )
        position += len(line)
        yield number, line


def _skip_line(stream: BinaryIO) -> int:
    """Read to the end of a line of any length; return the number of bytes."""
    num_bytes = 0
    while part := stream.readline(PIECE_BYTES):
        num_bytes += len(part)
        if part.endswith(b"\n"):
            break
    return num_bytes


def _parse(span: Span, number: int, line: bytes, text_field: str) -> str:
    try:
        value = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_place(span, number)} is not a JSON object: {error}") from error
    text = value.get(text_field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise DataError(
            f"{_place(span, number)} has no text in the field '{text_field}': "
            "name the right one with --text-field"
        )
    return text


def _place(span: Span, number: int) -> str:
    """Return path and line; the lines before the span are counted only for this."""
    before = 0
    if span.start:
        head = Span(file=span.file, start=0, stop=span.start)
        with _open(head) as stream:
            before = sum(1 for _ in _lines(head, stream))
    return f"{span.file.path}:{before + number}"
