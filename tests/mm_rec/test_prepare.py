from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pytest

from mm_rec import ConfigError, DataError, OutputError
from mm_rec.data import (
    BpeTokenizer,
    CharTokenizer,
    PreparedData,
    corpus,
    prepare,
    read_corpus,
    tokenizers,
)
from mm_rec.data.prepare import TokenizeMode, TokenizerKind, sample


def make_data(text_dir: Path, cache: Path, kind: TokenizerKind = "char") -> PreparedData:
    return prepare(read_corpus([text_dir]), tokenizer_kind=kind, vocab_size=300, cache_dir=cache)


def all_ids(data: PreparedData) -> list[list[int]]:
    assert data.validation is not None
    return [source.window(0, len(source)).tolist() for source in (data.train, data.validation)]


def in_a_process(function: Callable[[], object]) -> int:
    """Return the exit code of a forked process that calls `function`."""
    process = get_context("fork").Process(target=function)
    process.start()
    process.join(60.0)
    assert process.exitcode is not None
    return process.exitcode


def kept(cache: Path) -> list[Path]:
    """What is in the cache but for locks."""
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_ids_depend_neither_on_the_pieces_nor_on_the_process(
    text_dir: Path, tmp_path: Path, kind: TokenizerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"text": f"line {n} → " * (n % 9)}) for n in range(60)]
    (text_dir / "lines.jsonl").write_text("\n".join(lines))
    data = make_data(text_dir, tmp_path / "one", kind)
    assert multiprocessing.active_children() == []
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        # Beside another thread nothing is forked.
        monkeypatch.setattr(os, "fork", None)
        again = make_data(text_dir, tmp_path / "two", kind)
        if kind != "bpe":
            # Byte pairs are not looked for across pieces.
            monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 7)
        third = make_data(text_dir, tmp_path / "three", kind)
    finally:
        stop.set()
        thread.join()
    for other in (again, third):
        assert (other.key, other.tokenizer.to_dict()) == (data.key, data.tokenizer.to_dict())
        assert all_ids(other) == all_ids(data)
        assert other.validation_bytes == data.validation_bytes
    text = data.tokenizer.decode(all_ids(data)[1])
    assert len(text.encode()) == data.validation_bytes


def test_documents_are_held_out_whatever_their_order_and_names(tmp_path: Path) -> None:
    texts = [f"document {n} " * (n % 7 + 1) for n in range(200)]
    found = []
    for name, order in (("one", texts), ("two", texts[::-1])):
        (tmp_path / name).mkdir()
        for number, text in enumerate(order):
            (tmp_path / name / f"{number:03}.txt").write_text(text)
        data = prepare(
            read_corpus([tmp_path / name]), vocab_size=300, val_split=0.2, cache_dir=tmp_path
        )
        found.append(data)
    one, two = found
    decoded = [data.tokenizer.decode(all_ids(data)[1]) for data in found]
    assert sorted(decoded[0]) == sorted(decoded[1])
    assert 0.19 < one.validation_bytes / sum(map(len, texts)) <= 0.2
    assert one.validation_bytes == two.validation_bytes
    nothing = prepare(
        read_corpus([tmp_path / "one"]), vocab_size=300, val_split=0.0, cache_dir=tmp_path
    )
    assert nothing.validation is None
    assert nothing.validation_bytes_per_token == 1.0


@pytest.mark.parametrize("mode", ["ahead", "on-the-fly"])
def test_the_end_of_a_single_book_is_held_out(tmp_path: Path, mode: TokenizeMode) -> None:
    (tmp_path / "book.txt").write_text("0123456789" * 100)
    data = prepare(
        read_corpus([tmp_path / "book.txt"]),
        tokenizer_kind="byte",
        vocab_size=300,
        val_split=0.2,
        mode=mode,
        cache_dir=tmp_path,
    )
    train, held_out = map(data.tokenizer.decode, all_ids(data))
    assert train + held_out == "0123456789" * 100
    assert len(held_out) == 199
    assert data.validation_bytes == pytest.approx(200)


def test_second_start_opens_no_file_of_the_corpus(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_data(text_dir, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_open", None)
        patch.setattr(os, "fork", None)
        again = make_data(text_dir, tmp_path / "cache")
        assert again.key == first.key
        assert again.tokenizer.to_dict() == first.tokenizer.to_dict()
        assert again.validation_bytes == first.validation_bytes
        assert all_ids(again) == all_ids(first)
    # Written again, if with the same text: it is read, and is the same data.
    os.utime(text_dir / "00.txt", (1e9, 1e9))
    assert make_data(text_dir, tmp_path / "cache").key == first.key
    (text_dir / "00.txt").write_text("other")
    assert make_data(text_dir, tmp_path / "cache").key != first.key
    assert len(kept(tmp_path / "cache")) == 3


def test_equal_documents_elsewhere_are_the_same_data(text_dir: Path, tmp_path: Path) -> None:
    first = make_data(text_dir, tmp_path / "cache")
    other = tmp_path / "other"
    other.mkdir()
    for path in text_dir.iterdir():
        (other / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert make_data(other, tmp_path / "cache").key == first.key


@pytest.mark.parametrize("damage", ["empty", "missing", "description"])
def test_damaged_cache_is_named(text_dir: Path, tmp_path: Path, damage: str) -> None:
    make_data(text_dir, tmp_path / "cache")
    [directory] = kept(tmp_path / "cache")
    if damage == "empty":
        (directory / "ids.u16").write_bytes(b"")
    elif damage == "missing":
        (directory / "ids.u16").unlink()
    else:
        (directory / "description.json").write_text("{}")
    with pytest.raises(DataError, match=directory.name) as error:
        make_data(text_dir, tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_processes_may_fill_the_cache_at_once(text_dir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        jobs = [pool.submit(make_data, text_dir, cache) for _ in range(8)]
        assert len({job.result().key for job in jobs}) == 1
    assert len(kept(cache)) == 1


def test_a_killed_process_is_named_and_leaves_a_usable_cache(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(DataError, match=r"was killed \(exit code -9\)"):
            make_data(text_dir, tmp_path / "cache")
    [leftover] = kept(tmp_path / "cache")
    assert leftover.suffix == ".writing"
    data = make_data(text_dir, tmp_path / "cache")
    assert all_ids(data) == all_ids(make_data(text_dir, tmp_path / "another"))
    assert [path.suffix for path in kept(tmp_path / "cache")] == [""]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_signal(
    text_dir: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object, **__: object) -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        (tmp_path / "pid").replace(tmp_path / "child")
        time.sleep(60.0)

    monkeypatch.setattr(CharTokenizer, "train", hang)

    def be_parent() -> None:
        # A traceback is not wanted among the test's output.
        try:
            make_data(text_dir, tmp_path / "cache")
        except KeyboardInterrupt:
            os._exit(130)

    parent = get_context("fork").Process(target=be_parent)
    parent.start()
    wait_until((tmp_path / "child").exists)
    child = psutil.Process(int((tmp_path / "child").read_text()))
    assert parent.pid is not None
    os.kill(parent.pid, number)
    parent.join(10.0)
    assert parent.exitcode == (130 if number is signal.SIGINT else -number)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_full_disk_is_named_and_nothing_is_left(text_dir: Path, tmp_path: Path) -> None:
    def prepare_with_small_files() -> None:
        # Like a full disk, but for this process alone.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
        with pytest.raises(OutputError, match=r"cannot write the token cache .*File too large"):
            make_data(text_dir, tmp_path / "cache")

    assert in_a_process(prepare_with_small_files) == 0
    assert kept(tmp_path / "cache") == []
    make_data(text_dir, tmp_path / "cache")


@pytest.mark.parametrize("name", ["book.txt", "lines.jsonl", "book.txt.gz"])
@pytest.mark.parametrize(("kind", "most_mb"), [("char", 60), ("byte", 40)])
def test_memory_is_bounded_whatever_the_files_size(
    tmp_path: Path, name: str, kind: TokenizerKind, most_mb: int
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
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    tracemalloc.start()
    try:
        data = make_data(path, tmp_path / "cache", kind)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        stop.set()
        thread.join()
    assert len(data.train) > 35_000_000
    assert peak_bytes < most_mb * 1e6
    path.unlink()


TEXTS = [
    "",
    "the quick brown fox",
    "naïve → 🌳  \n\t\r\n  two  spaces ",
    "\x00\x7f\u0080\u00ad\ufeff\U0010ffff",
    "def f(x): return x['a'] + 1\n" * 50,
]


@pytest.fixture(scope="module")
def tokenizer() -> BpeTokenizer:
    return BpeTokenizer.train(iter(TEXTS), vocab_size=300)


@pytest.mark.parametrize("text", [*TEXTS, "words never seen: жзий", "x" * 200_000])
def test_byte_pairs_give_the_text_back(tokenizer: BpeTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_array(text).dtype == np.uint16
    assert all(tokenizers.NUM_SPECIAL <= i < tokenizer.vocab_size == 300 for i in ids)
    restored = tokenizers.tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert restored.encode(text) == ids


def test_frequent_sequences_have_an_id(tokenizer: BpeTokenizer) -> None:
    assert len(tokenizer.encode(TEXTS[-1])) < len(TEXTS[-1]) / 2
    the = tokenizer.encode("the")
    assert tokenizer.decode([tokenizers.PAD_ID, *the, tokenizers.PAD_ID]) == "the"
    small = BpeTokenizer.train(iter(["abab abab"]), vocab_size=400)
    assert small.vocab_size < 265
    with pytest.raises(ConfigError, match="tokenizers library"):
        tokenizers.tokenizer_from_dict({"kind": "bpe", "library": "{}"})


def test_byte_pairs_are_learned_from_training_documents_alone(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    words = [f"{chr(0x4E00 + number)}" * 8 for number in range(40)]
    for number, word in enumerate(words):
        (tmp_path / f"text/{number}.txt").write_text(f"{word} " * 3)
    data = prepare(
        read_corpus([tmp_path / "text"]), tokenizer_kind="bpe", vocab_size=900, cache_dir=tmp_path
    )
    train = data.tokenizer.decode(all_ids(data)[0])
    lengths = {word in train: len(data.tokenizer.encode(word)) for word in words}
    assert lengths[True] == 1 < lengths[False]


def test_a_sample_is_spread_evenly_over_the_text() -> None:
    texts = [f"{number:09}" for number in range(1_000)]
    taken = [int(text) for text in sample(iter(texts), share=0.1)]
    assert len(taken) == 100
    assert np.diff(taken).max() == np.diff(taken).min() == 10
    assert list(sample(iter(texts), share=2.0)) == texts


def test_the_library_leaves_no_thread(text_dir: Path, tmp_path: Path) -> None:
    before = psutil.Process().num_threads()
    make_data(text_dir, tmp_path, "bpe")
    assert psutil.Process().num_threads() == before


def test_without_the_library_it_says_what_to_install(
    text_dir: Path, tmp_path: Path, tokenizer: BpeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'autotune\[bpe\]'"):
        make_data(text_dir, tmp_path, "bpe")
    with pytest.raises(ConfigError, match=r"pip install 'autotune\[bpe\]'"):
        tokenizers.tokenizer_from_dict(tokenizer.to_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_impossible_settings_are_refused(text_dir: Path, tmp_path: Path) -> None:
    files = read_corpus([text_dir])
    with pytest.raises(ConfigError, match="at least 258"):
        prepare(files, tokenizer_kind="bpe", vocab_size=257, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="--tokenize ahead"):
        prepare(files, tokenizer_kind="bpe", vocab_size=300, mode="on-the-fly")
    with pytest.raises(ConfigError, match="65536, got 70000"):
        prepare(files, vocab_size=70_000, cache_dir=tmp_path)
