from __future__ import annotations

import gzip
import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mm_rec import ConfigError, DataError
from mm_rec.data import (
    ByteTokenizer,
    CharTokenizer,
    PreparedData,
    StreamedWindows,
    Tokenizer,
    WindowDataset,
    WindowOrder,
    prepare,
    read_corpus,
)
from mm_rec.data.corpus import split_documents
from mm_rec.data.prepare import TokenizeMode, TokenizerKind
from mm_rec.data.tokenizers import PAD_ID, UNKNOWN_ID


def make_data(
    text_dir: Path, cache: Path, mode: TokenizeMode = "ahead", kind: TokenizerKind = "char"
) -> PreparedData:
    return prepare(
        read_corpus([text_dir]),
        tokenizer_kind=kind,
        vocab_size=30,
        mode=mode,
        cache_dir=cache,
    )


def test_standard_library_is_the_default_corpus() -> None:
    corpus = read_corpus()
    assert len(corpus.files) > 100
    assert not any("site-packages" in path.parts for path, _ in corpus.files)
    assert [path for path, _ in corpus.files] == sorted(path for path, _ in corpus.files)


def test_text_json_lines_and_gzip_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"plain \xff")
    (tmp_path / "sub").mkdir()
    lines = "".join(json.dumps({"body": text}) + "\n" for text in ("one\u2028", "two"))
    (tmp_path / "sub/b.jsonl").write_text(lines + "\n")
    (tmp_path / "sub/c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "sub/d.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (tmp_path / "sub/ignored.bin").write_bytes(b"\0")
    documents = read_corpus([tmp_path], text_field="body").documents()
    assert documents == ("plain \ufffd", "one\u2028", "two", "one\u2028", "two", "zipped")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"a\.jsonl:2 .*--text-field"),
        ("a.jsonl", b"nonsense", r"a\.jsonl:1 is not a JSON object"),
        ("a.txt.gz", b"not gzip", "not a readable .gz"),
        ("a.bin", b"", r"not a \.txt"),
        ("a.txt", b"", "no text"),
    ],
)
def test_bad_data_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_corpus([tmp_path / name]).documents()


def test_split_is_by_document_and_independent_of_their_order() -> None:
    documents = [f"document {n} " * (n % 7 + 1) for n in range(200)]
    train, held_out = split_documents(documents, 0.2)
    assert sorted(train + held_out) == sorted(documents)
    share = sum(map(len, held_out)) / sum(map(len, documents))
    assert 0.15 < share <= 0.2
    assert set(split_documents(documents[::-1], 0.2)[1]) == set(held_out)
    assert set(split_documents(documents, 0.2, seed=1)[1]) != set(held_out)
    assert split_documents(documents, 0.0) == (tuple(documents), ())


def test_a_single_document_is_split_at_its_end() -> None:
    train, held_out = split_documents(["0123456789"], 0.3)
    assert (train, held_out) == (("0123456",), ("789",))


def test_characters_are_ranked_by_frequency_and_rare_ones_unknown() -> None:
    tokenizer = CharTokenizer.from_documents(["abbccc", "dc"], vocab_size=5)
    assert tokenizer.characters == "cba"
    assert tokenizer.encode("abcd") == [4, 3, 2, UNKNOWN_ID]
    assert tokenizer.decode([4, PAD_ID, 3, 2, UNKNOWN_ID]) == "abc\ufffd"
    with pytest.raises(ConfigError, match="vocab_size"):
        CharTokenizer("abc", vocab_size=4)


@pytest.mark.parametrize("text", ["", "abc", "naïve → 🌳", "lone \ud800 surrogate"])
@pytest.mark.parametrize("kind", ["char", "byte"])
def test_plain_and_vectorised_encoding_agree(kind: str, text: str) -> None:
    tokenizer: Tokenizer = ByteTokenizer()
    if kind == "char":
        tokenizer = CharTokenizer.from_documents(["abc → nv \ud800"], vocab_size=9)
    ids = tokenizer.encode(tokenizer.raw(text))
    assert ids == tokenizer.encode_array(text).tolist()
    assert max(ids, default=0) < tokenizer.vocab_size
    if kind == "byte" and "\ud800" not in text:
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("stride", [None, 5, 40])
def test_windows_are_the_same_ahead_and_on_the_fly(
    text_dir: Path, tmp_path: Path, kind: TokenizerKind, stride: int | None
) -> None:
    ahead = make_data(text_dir, tmp_path / "cache", kind=kind)
    lazy = make_data(text_dir, tmp_path / "cache", "on-the-fly", kind)
    assert ahead.key == lazy.key
    for first, second in ((ahead.train, lazy.train), (ahead.validation, lazy.validation)):
        assert first is not None
        assert second is not None
        one = WindowDataset(first, seq_len=33, stride=stride)
        two = WindowDataset(second, seq_len=33, stride=stride)
        assert len(one) == len(two) > 0
        assert all(torch.equal(one[i], two[i]) for i in range(len(one)))


def test_windows_tile_the_text_and_share_one_token(text_dir: Path, tmp_path: Path) -> None:
    source = make_data(text_dir, tmp_path).train
    windows = WindowDataset(source, seq_len=20)
    assert windows[0].dtype == torch.int64
    assert windows[0].shape == (21,)
    assert windows[0][-1] == windows[1][0]
    assert 0 <= len(source) - 1 - 20 * len(windows) < 20
    with pytest.raises(IndexError):
        windows[len(windows)]
    assert len(WindowDataset(source, seq_len=len(source) - 1)) == 1
    with pytest.raises(DataError, match="fewer than one sample"):
        WindowDataset(source, seq_len=len(source))


def test_every_document_ends_with_pad(text_dir: Path, tmp_path: Path) -> None:
    source = make_data(text_dir, tmp_path).train
    ids = source.window(0, len(source))
    num_train = len(split_documents(read_corpus([text_dir]).documents(), 0.1)[0])
    assert np.count_nonzero(ids == PAD_ID) == num_train
    assert ids[-1] == PAD_ID


def test_second_start_reads_the_cache_and_changed_text_does_not(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = make_data(text_dir, cache)
    with monkeypatch.context() as patch:
        patch.setattr(CharTokenizer, "from_documents", None)
        again = make_data(text_dir, cache)
    assert again.key == first.key
    assert again.tokenizer.characters == first.tokenizer.characters
    assert (again.train.window(0, 99) == first.train.window(0, 99)).all()
    (text_dir / "00.txt").write_text("other")
    assert make_data(text_dir, cache).key != first.key
    assert not list(cache.glob(".writing-*"))


def test_damaged_cache_is_named(text_dir: Path, tmp_path: Path) -> None:
    key = make_data(text_dir, tmp_path).key
    (tmp_path / f"{key}.train.npy").write_bytes(b"")
    with pytest.raises(DataError, match="delete it"):
        make_data(text_dir, tmp_path)


def _window_sum(text_dir: Path, cache: Path) -> int:
    source = make_data(text_dir, cache).train
    return int(source.window(0, len(source)).sum())


def test_two_processes_may_fill_the_cache_at_once(text_dir: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        jobs = [pool.submit(_window_sum, text_dir, tmp_path / "cache") for _ in range(4)]
        assert len({job.result() for job in jobs}) == 1


def test_mapped_source_is_sent_to_other_processes_by_path(text_dir: Path, tmp_path: Path) -> None:
    source = make_data(text_dir, tmp_path).train
    content = pickle.dumps(source)
    assert len(content) < 1_000
    assert (pickle.loads(content).window(3, 9) == source.window(3, 9)).all()


def test_order_depends_on_seed_and_epoch_and_is_cut_to_whole_steps() -> None:
    order = WindowOrder(103, effective_batch_size=10, seed=1)
    first = list(order)
    assert len(first) == len(order) == 100
    assert len(set(first)) == 100
    order.seek(epoch=1)
    assert list(order) != first
    order.seek(epoch=0, start=40)
    assert len(order) == 60
    assert list(order) == first[40:]
    assert list(WindowOrder(103, effective_batch_size=10, seed=2)) != first
    # A prefix whatever the effective batch size is.
    assert list(WindowOrder(103, effective_batch_size=1, seed=1))[:100] == first
    with pytest.raises(DataError, match="fewer than one optimizer step"):
        WindowOrder(9, effective_batch_size=10, seed=0)
    with pytest.raises(ConfigError, match="start"):
        order.seek(epoch=0, start=101)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # More workers than cores.
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_stream_gives_the_map_datasets_batches_whatever_the_workers(
    text_dir: Path, tmp_path: Path, num_workers: int
) -> None:
    windows = WindowDataset(make_data(text_dir, tmp_path).train, seq_len=20)
    order = WindowOrder(len(windows), effective_batch_size=4, seed=0)
    stream = StreamedWindows(windows, order, block_size=4)
    options = {"multiprocessing_context": "fork", "persistent_workers": True}
    loader = DataLoader(stream, 4, num_workers=num_workers, **options if num_workers else {})
    for epoch, start in ((0, 0), (1, 0), (2, 8)):
        order.seek(epoch=epoch, start=start)
        expected = list(DataLoader(windows, 4, sampler=list(order)))
        got = list(loader)
        assert len(got) == len(expected) == (order.samples_per_epoch - start) // 4
        assert all(torch.equal(one, two) for one, two in zip(got, expected, strict=True))
