from __future__ import annotations

import pickle
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
    WindowDataset,
    WindowOrder,
    prepare,
    read_corpus,
)
from mm_rec.data.prepare import TokenizeMode, TokenizerKind
from mm_rec.data.tokenizers import PAD_ID, UNKNOWN_ID, UnitTokenizer, tokenizer_from_dict


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


def test_characters_are_ranked_by_frequency_and_rare_ones_unknown() -> None:
    tokenizer = CharTokenizer.train(["abbccc", "dc"], vocab_size=5)
    assert tokenizer.characters == "cba"
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode("abcd") == [4, 3, 2, UNKNOWN_ID]
    assert tokenizer.decode([4, PAD_ID, 3, 2, UNKNOWN_ID]) == "abc\ufffd"
    with pytest.raises(ConfigError, match="vocab_size"):
        CharTokenizer("".join(map(chr, range(0x10000, 0x20000))))


@pytest.mark.parametrize("text", ["", "abc", "naïve → 🌳", "lone \ud800 surrogate"])
@pytest.mark.parametrize("kind", ["char", "byte"])
def test_plain_and_vectorised_encoding_agree(kind: str, text: str) -> None:
    tokenizer: UnitTokenizer = ByteTokenizer()
    if kind == "char":
        tokenizer = CharTokenizer.train(["abc → nv \ud800"], vocab_size=9)
    ids = tokenizer.encode_raw(tokenizer.raw(text))
    assert ids == tokenizer.encode_array(text).tolist() == tokenizer.encode(text)
    assert max(ids, default=0) < tokenizer.vocab_size
    if kind == "byte" and "\ud800" not in text:
        assert tokenizer.decode(ids) == text
    assert tokenizer_from_dict(tokenizer.to_dict()).encode(text) == ids


@pytest.mark.parametrize("values", [{}, {"kind": "word"}, {"kind": "char"}, {"kind": "bpe"}])
def test_what_describes_no_tokenizer_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        tokenizer_from_dict(values)


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("stride", [None, 5, 40])
def test_windows_are_the_same_ahead_and_on_the_fly(
    text_dir: Path, tmp_path: Path, kind: TokenizerKind, stride: int | None
) -> None:
    ahead = make_data(text_dir, tmp_path / "cache", kind=kind)
    lazy = make_data(text_dir, tmp_path / "cache", "on-the-fly", kind)
    assert ahead.key == lazy.key
    assert ahead.tokenizer.to_dict() == lazy.tokenizer.to_dict()
    assert ahead.validation_bytes == lazy.validation_bytes > 0
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


def test_all_text_is_there_and_every_document_ends_with_pad(text_dir: Path, tmp_path: Path) -> None:
    data = make_data(text_dir, tmp_path, kind="byte")
    assert data.validation is not None
    texts: list[str] = []
    for source in (data.train, data.validation):
        ids = source.window(0, len(source))
        assert ids[-1] == PAD_ID
        ends = np.flatnonzero(ids == PAD_ID)
        texts += [data.tokenizer.decode(part.tolist()) for part in np.split(ids, ends)]
    expected = sorted(path.read_text() for path in text_dir.iterdir())
    # What follows the last PAD of each part is empty.
    assert sorted(texts) == ["", "", *expected]
    held_out_bytes = data.validation_bytes
    assert held_out_bytes == len(data.validation) - np.count_nonzero(
        data.validation.window(0, len(data.validation)) == PAD_ID
    )
    assert data.validation_bytes_per_token == held_out_bytes / len(data.validation)


def test_vocabulary_holds_what_training_uses_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(40):
        # A character of its own in each document.
        (tmp_path / f"text/{number}.txt").write_text(f"same {chr(0x4E00 + number)}")
    corpus = read_corpus([tmp_path / "text"])
    data = prepare(corpus, vocab_size=5_000, cache_dir=tmp_path)
    tokenizer = data.tokenizer
    train = tokenizer.decode(data.train.window(0, len(data.train)).tolist())
    assert isinstance(tokenizer, CharTokenizer)
    assert sorted(tokenizer.characters) == sorted(set(train))
    assert "\ufffd" not in train
    assert tokenizer.vocab_size == len(set(train)) + 2 == 5 + 36 + 2
    assert data.validation is not None
    held_out = data.validation.window(0, len(data.validation))
    assert np.count_nonzero(held_out == UNKNOWN_ID) == 4


def test_mapped_source_is_sent_to_other_processes_by_path(text_dir: Path, tmp_path: Path) -> None:
    source = make_data(text_dir, tmp_path).train
    content = pickle.dumps(source)
    assert len(content) < 1_000
    assert (pickle.loads(content).window(3, 9) == source.window(3, 9)).all()


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


def test_order_depends_on_seed_and_epoch_and_is_cut_to_whole_steps() -> None:
    order = WindowOrder(10_003, effective_batch_size=10, seed=1)
    first = list(order)
    assert len(first) == len(order) == 10_000
    assert len(set(first)) == 10_000
    order.seek(epoch=1)
    assert list(order) != first
    order.seek(epoch=0, start=4_097)
    assert len(order) == 5_903
    assert list(order) == first[4_097:]
    assert list(WindowOrder(10_003, effective_batch_size=10, seed=2)) != first
    # A prefix whatever the effective batch size is.
    assert list(WindowOrder(10_003, effective_batch_size=1, seed=1))[:10_000] == first
    with pytest.raises(DataError, match="fewer than one optimizer step"):
        WindowOrder(9, effective_batch_size=10, seed=0)
    with pytest.raises(ConfigError, match="start"):
        order.seek(epoch=0, start=10_001)
