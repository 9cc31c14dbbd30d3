"""The last pass over a corpus: its ids, in shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_rec.data.passes import Passes
from mm_rec.data.reading import Report
from mm_rec.data.shards import ShardWriter, shard_path
from mm_rec.data.split import Part, SplitCorpus
from mm_rec.data.tokenizers import PAD_ID, Tokenizer

PAD = np.array([PAD_ID], dtype=np.uint16)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedCorpus:
    """What was written.

    Attributes:
        shards: Per part, the number of ids of each shard.
        validation_bytes: UTF-8 bytes of the held-out text.
    """

    shards: dict[Part, tuple[int, ...]]
    validation_bytes: int


def encode_corpus(
    corpus: SplitCorpus,
    tokenizer: Tokenizer,
    directory: Path,
    *,
    shard_tokens: int,
    passes: Passes,
) -> EncodedCorpus:
    """Write the ids of every document, each followed by PAD, into an empty directory.

    Raises:
        DataError: A file of the corpus cannot be read any more.
        OSError: A shard cannot be written.
    """

    def encode(number: int, report: Report) -> _TaskShards:
        return _encode_task(
            corpus, number, tokenizer, directory, shard_tokens=shard_tokens, report=report
        )

    shards: dict[Part, list[int]] = {part: [] for part in Part}
    validation_bytes = 0

    def consume(result: _TaskShards) -> None:
        nonlocal validation_bytes
        validation_bytes += result.validation_bytes
        for part, written in result.shards.items():
            for path, num_tokens in written:
                path.replace(shard_path(directory, part.value, len(shards[part])))
                shards[part].append(num_tokens)

    passes.run("encoding", encode, range(len(corpus.survey.tasks)), consume)
    return EncodedCorpus(
        shards={part: tuple(lengths) for part, lengths in shards.items()},
        validation_bytes=validation_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaskShards:
    shards: dict[Part, list[tuple[Path, int]]]
    validation_bytes: int


def _encode_task(
    corpus: SplitCorpus,
    number: int,
    tokenizer: Tokenizer,
    directory: Path,
    *,
    shard_tokens: int,
    report: Report,
) -> _TaskShards:
    writers = {
        part: ShardWriter(directory, f"task-{number}-{part.value}", shard_tokens) for part in Part
    }
    validation_bytes = 0
    try:
        for fragment in corpus.fragments(number, report=report):
            writer = writers[fragment.part]
            writer.add(tokenizer.encode_array(fragment.text))
            if fragment.ends:
                writer.add(PAD)
            if fragment.part is Part.VALIDATION:
                validation_bytes += len(fragment.text.encode("utf-8", errors="surrogatepass"))
    finally:
        for writer in writers.values():
            writer.close()
    return _TaskShards(
        shards={part: writer.written for part, writer in writers.items()},
        validation_bytes=validation_bytes,
    )
