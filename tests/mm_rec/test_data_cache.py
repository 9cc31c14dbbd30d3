from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from mm_rec import DataError, OutputError
from mm_rec.data import PreparedData, prepare, read_corpus, reading
from mm_rec.data.cache import TokenCache
from mm_rec.data.shards import ShardWriter
from mm_rec.data.vocabulary import TokenizerKind


@pytest.fixture
def mixed_dir(text_dir: Path) -> Path:
    """The small documents, and files of lines, compressed or not."""
    lines = [json.dumps({"text": f"line {n} → " * (n % 9)}) for n in range(60)]
    (text_dir / "lines.jsonl").write_text("\n".join(lines))
    (text_dir / "zipped.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[:20]).encode()))
    return text_dir


def make_old(directory: Path) -> None:
    """Date all files back, so that they count as no longer being written."""
    for path in directory.iterdir():
        os.utime(path, (1e9, 1e9))


def make_data(text_dir: Path, cache: Path) -> PreparedData:
    return prepare(read_corpus([text_dir]), vocab_size=300, cache_dir=cache)


def all_ids(data: PreparedData) -> list[list[int]]:
    assert data.validation is not None
    return [source.window(0, len(source)).tolist() for source in (data.train, data.validation)]


def in_a_process(function: Callable[[], None]) -> int:
    """Return the exit code of a forked process that calls `function`."""
    process = get_context("fork").Process(target=function)
    process.start()
    process.join(60.0)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_ids_depend_neither_on_processes_nor_on_sizes(
    mixed_dir: Path, tmp_path: Path, kind: TokenizerKind
) -> None:
    corpus = read_corpus([mixed_dir])
    reference: PreparedData | None = None
    for number, (processes, segment, shard) in enumerate(
        [(1, 2**22, 2**27), (2, 2**10, 2**27), (4, 100, 2**27), (1, 2**10, 1_000), (2, 500, 97)]
    ):
        cache = tmp_path / f"cache-{number}"
        data = prepare(
            corpus,
            tokenizer_kind=kind,
            vocab_size=300,
            cache_dir=cache,
            num_processes=processes,
            segment_bytes=segment,
            shard_tokens=shard,
        )
        reference = reference or data
        assert (data.key, data.tokenizer.to_dict()) == (
            reference.key,
            reference.tokenizer.to_dict(),
        )
        assert all_ids(data) == all_ids(reference)
        assert data.validation_bytes == reference.validation_bytes
        sizes = [len(np.load(path)) for path in cache.glob("*/*.npy")]
        assert max(sizes) <= shard
        assert min(sizes) > 0
    assert multiprocessing.active_children() == []


def test_windows_reach_across_shards(text_dir: Path, tmp_path: Path) -> None:
    corpus = read_corpus([text_dir])
    data = prepare(corpus, vocab_size=300, cache_dir=tmp_path, segment_bytes=1_000, shard_tokens=7)
    whole = data.train.window(0, len(data.train))
    assert whole.dtype == np.int64
    for start in range(100):
        for length in (1, 6, 7, 8, 30):
            assert (data.train.window(start, length) == whole[start : start + length]).all()
    assert (data.train.window(len(whole) - 9, 9) == whole[-9:]).all()


def test_second_start_opens_no_file_of_the_corpus(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(text_dir)
    first = make_data(text_dir, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(reading, "_open", None)
        again = make_data(text_dir, tmp_path / "cache")
        assert again.key == first.key
        assert again.tokenizer.to_dict() == first.tokenizer.to_dict()
        assert again.validation_bytes == first.validation_bytes
        assert all_ids(again) == all_ids(first)
        # Written again, if with the same text: it has to be read.
        os.utime(text_dir / "00.txt")
        with pytest.raises(TypeError):
            make_data(text_dir, tmp_path / "cache")
    assert make_data(text_dir, tmp_path / "cache").key == first.key
    (text_dir / "00.txt").write_text("other")
    assert make_data(text_dir, tmp_path / "cache").key != first.key
    assert not list((tmp_path / "cache").glob(".writing-*"))


def test_files_that_were_written_just_now_are_read_again(text_dir: Path, tmp_path: Path) -> None:
    path = text_dir / "00.txt"
    make_data(text_dir, tmp_path / "cache")
    before = path.stat()
    path.write_text(path.read_text().replace("quick", "quack"))
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    text = prepare(
        read_corpus([text_dir]), tokenizer_kind="byte", vocab_size=300, cache_dir=tmp_path / "cache"
    )
    ids = [i for part in all_ids(text) for i in part]
    assert text.tokenizer.decode(ids).count("quack") == 1
    make_data(text_dir, tmp_path / "cache")
    # One corpus as it was, the changed one with two tokenizers.
    assert len(list((tmp_path / "cache").glob("*/description.json"))) == 3


def test_equal_documents_elsewhere_share_the_cache(text_dir: Path, tmp_path: Path) -> None:
    first = make_data(text_dir, tmp_path / "cache")
    other = tmp_path / "other"
    other.mkdir()
    for path in text_dir.iterdir():
        (other / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert make_data(other, tmp_path / "cache").key == first.key


@pytest.mark.parametrize("damage", ["empty", "missing", "description"])
def test_damaged_cache_is_named(text_dir: Path, tmp_path: Path, damage: str) -> None:
    directory = tmp_path / make_data(text_dir, tmp_path).key
    shard = directory / "train-000000.npy"
    if damage == "empty":
        shard.write_bytes(b"")
    elif damage == "missing":
        shard.unlink()
    else:
        (directory / "description.json").write_text("{}")
    with pytest.raises(DataError, match=f"{directory.name}.* delete ") as error:
        make_data(text_dir, tmp_path)
    assert "\n" not in str(error.value)


def _first_ids(text_dir: Path, cache: Path, shard_tokens: int) -> list[int]:
    corpus = read_corpus([text_dir])
    data = prepare(corpus, vocab_size=300, cache_dir=cache, shard_tokens=shard_tokens)
    return data.train.window(0, len(data.train)).tolist()


def test_processes_may_fill_the_cache_at_once(text_dir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        jobs = [pool.submit(_first_ids, text_dir, cache, size) for size in (50, 60, 70, 80) * 2]
        assert len({tuple(job.result()) for job in jobs}) == 1
    assert sorted(len(path.name) for path in cache.iterdir()) == [24]


def test_a_killed_writer_leaves_a_usable_cache(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"

    def die_while_writing() -> None:
        monkeypatch.setattr(ShardWriter, "close", lambda self: os.kill(os.getpid(), signal.SIGKILL))
        make_data(text_dir, cache)

    assert in_a_process(die_while_writing) == -signal.SIGKILL
    leftovers = list(cache.iterdir())
    assert [path.name.startswith(".writing-") for path in leftovers] == [True]
    assert list(leftovers[0].glob("corpus/*"))
    # A living writer's directory stays.
    with TokenCache(directory=cache).writing() as other:
        data = make_data(text_dir, cache)
        assert [path.name for path in cache.glob(".writing-*")] == [other.name]
    assert all_ids(data) == all_ids(make_data(text_dir, tmp_path / "another"))
    assert [path.name for path in cache.iterdir()] == [data.key]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_full_disk_is_named_and_nothing_is_left(
    text_dir: Path, tmp_path: Path, num_processes: int
) -> None:
    def prepare_with_small_files() -> None:
        # Like a full disk, but for this process alone.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
        with pytest.raises(OutputError, match=r"cannot write the token cache .*File too large"):
            prepare(
                read_corpus([text_dir]),
                vocab_size=300,
                cache_dir=tmp_path / "cache",
                num_processes=num_processes,
                segment_bytes=3_000,
            )

    assert in_a_process(prepare_with_small_files) == 0
    assert list((tmp_path / "cache").iterdir()) == []
    make_data(text_dir, tmp_path / "cache")


def test_a_file_written_while_it_is_read_spoils_nothing(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ShardWriter.close

    def close(self: ShardWriter) -> None:
        (text_dir / "00.txt").write_text("changed")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "close", close)
        with pytest.raises(DataError, match=r"00\.txt was written while it was being read"):
            make_data(text_dir, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "most_bytes"),
    [
        # The tables by code point take 9 MB each.
        ("book.txt", "char", 48_000_000),
        ("book.txt", "byte", 16_000_000),
        ("lines.jsonl", "byte", 16_000_000),
        ("book.txt.gz", "byte", 16_000_000),
    ],
)
def test_memory_is_bounded_whatever_the_files_size(
    tmp_path: Path, name: str, kind: TokenizerKind, most_bytes: int
) -> None:
    """The text takes 64 MB in the file, 145 MB as a string.

    All allocations of Python and numpy are counted, in the one process that there is.
    """
    path = tmp_path / name
    line = "naïve → 🌳 " * 800
    if name.endswith(".jsonl"):
        line = json.dumps({"text": line}, ensure_ascii=False)
    block = f"{line}\n".encode() * 100
    with gzip.open(path, "wb", 1) if name.endswith(".gz") else path.open("wb") as file:
        for _ in range(64_000_000 // len(block)):
            file.write(block)

    tracemalloc.start()
    try:
        data = prepare(
            read_corpus([path]),
            tokenizer_kind=kind,
            vocab_size=300,
            cache_dir=tmp_path / "cache",
            num_processes=1,
        )
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data.train) > 35_000_000
    assert peak_bytes < most_bytes
    shutil.rmtree(tmp_path / "cache")
    path.unlink()
