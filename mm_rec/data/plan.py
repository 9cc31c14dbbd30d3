"""What is read at a time: a corpus cut into tasks of bounded size."""

from __future__ import annotations

from dataclasses import dataclass

from mm_rec.data.corpus import CorpusFiles, SourceFile

# Text is read, hashed and encoded in pieces of so many bytes.
PIECE_BYTES = 2**20
MIN_SEGMENT_BYTES = 2**22
MAX_SEGMENT_BYTES = 2**26
# Enough tasks that no process waits long for the last one.
NUM_SEGMENTS = 64


def default_segment_bytes(corpus: CorpusFiles) -> int:
    """Return how large a task should be; it bounds the size of a shard as well."""
    return min(max(corpus.num_bytes // NUM_SEGMENTS, MIN_SEGMENT_BYTES), MAX_SEGMENT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The bytes [start, stop) of a file.

    A line belongs to the span in which it begins. A cut inside a .txt file moves forward to the
    next beginning of a character.
    """

    file: SourceFile
    start: int
    stop: int

    @property
    def is_gzip(self) -> bool:
        """Whether the file is compressed; such a file has one span."""
        return self.file.path.endswith(".gz")

    @property
    def is_lines(self) -> bool:
        """Whether each line is a document, and not the whole file."""
        return self.file.path.removesuffix(".gz").endswith(".jsonl")

    @property
    def is_part(self) -> bool:
        """Whether it holds a part of a document and nothing else."""
        return not self.is_lines and (self.start, self.stop) != (0, self.file.num_bytes)


Task = tuple[Span, ...]


def plan_tasks(corpus: CorpusFiles, segment_bytes: int) -> tuple[Task, ...]:
    """Cut a corpus into tasks of about `segment_bytes`, in order.

    A large file gives several tasks, small ones share a task. Compressed files stay whole, since
    they can only be read from their beginning.
    """
    tasks: list[Task] = []
    shared: list[Span] = []
    for file in corpus.files:
        spans = _spans(file, segment_bytes)
        if len(spans) == 1 and sum(s.stop - s.start for s in shared) < segment_bytes:
            shared += spans
            continue
        if shared:
            tasks.append(tuple(shared))
        shared = []
        if len(spans) == 1:
            shared = spans
        else:
            tasks += [(span,) for span in spans]
    return (*tasks, tuple(shared)) if shared else tuple(tasks)


def _spans(file: SourceFile, segment_bytes: int) -> list[Span]:
    whole = Span(file=file, start=0, stop=file.num_bytes)
    if whole.is_gzip:
        return [whole]
    # The pieces of a document, and with them its hash, must not depend on the spans.
    step = segment_bytes if whole.is_lines else -(-segment_bytes // PIECE_BYTES) * PIECE_BYTES
    starts = range(0, max(1, file.num_bytes), step)
    return [Span(file=file, start=a, stop=min(a + step, file.num_bytes)) for a in starts]
