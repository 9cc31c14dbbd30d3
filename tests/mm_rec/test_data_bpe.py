from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mm_rec import ConfigError
from mm_rec.data import (
    BpeTokenizer,
    PreparedData,
    prepare,
    read_corpus,
    tokenizer_from_dict,
    vocabulary,
)
from mm_rec.data.tokenizers import NUM_SPECIAL, PAD_ID

pytest.importorskip("tokenizers")

TEXTS = [
    "",
    "the quick brown fox",
    "naïve → 🌳  \n\t\r\n  two  spaces ",
    "\x00\x7f\u0080\u00ad\ufeff\U0010ffff",
    "def f(x): return x['a'] + 1\n" * 50,
]


@pytest.fixture(scope="module")
def tokenizer() -> BpeTokenizer:
    return BpeTokenizer.train([*TEXTS, "lone \ud800 surrogate"], vocab_size=300)


def make_data(text_dir: Path, cache: Path, **options: int) -> PreparedData:
    corpus = read_corpus([text_dir])
    return prepare(corpus, tokenizer_kind="bpe", vocab_size=290, cache_dir=cache, **options)


@pytest.mark.parametrize("text", [*TEXTS, "words never seen: жзий", "x" * 200_000])
def test_decoding_gives_the_text_back(tokenizer: BpeTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_array(text).dtype == np.uint16
    assert all(NUM_SPECIAL <= i < tokenizer.vocab_size for i in ids)


def test_frequent_sequences_have_an_id_and_lone_surrogates_their_bytes(
    tokenizer: BpeTokenizer,
) -> None:
    assert tokenizer.vocab_size == 300
    assert len(tokenizer.encode(TEXTS[-1])) < len(TEXTS[-1]) / 2
    assert tokenizer.encode("a") == [ord("a") + NUM_SPECIAL]
    ids = tokenizer.encode("the \ud800the")
    the = tokenizer.encode("the")
    assert ids[-len(the) :] == the
    assert [i - NUM_SPECIAL for i in ids[-len(the) - 3 : -len(the)]] == [0xED, 0xA0, 0x80]
    assert tokenizer.decode([PAD_ID, *the, PAD_ID]) == "the"


def test_no_more_ids_than_can_be_learned() -> None:
    tokenizer = BpeTokenizer.train(["abab abab"], vocab_size=400)
    assert tokenizer.vocab_size < 265
    assert tokenizer.decode(tokenizer.encode("abab ü")) == "abab ü"


def test_stored_and_restored_tokenizers_are_equal(tokenizer: BpeTokenizer) -> None:
    values = tokenizer.to_dict()
    assert values["vocab_size"] == 300
    file = io.BytesIO()
    torch.save(values, file)
    file.seek(0)
    for stored in (json.loads(json.dumps(values)), torch.load(file, weights_only=True)):
        restored = tokenizer_from_dict(stored)
        assert restored.to_dict() == values
        for text in TEXTS:
            assert restored.encode(text) == tokenizer.encode(text)
    with pytest.raises(ConfigError, match="merges"):
        tokenizer_from_dict({"kind": "bpe", "merges": [[70, 300]]})


def test_ids_depend_neither_on_processes_nor_on_sizes(text_dir: Path, tmp_path: Path) -> None:
    first = make_data(text_dir, tmp_path / "one", num_processes=1)
    again = make_data(
        text_dir, tmp_path / "two", num_processes=3, segment_bytes=700, shard_tokens=99
    )
    assert again.key == first.key
    assert again.tokenizer.to_dict() == first.tokenizer.to_dict()
    assert len(first.train) == len(again.train)
    assert (again.train.window(0, 1_000) == first.train.window(0, 1_000)).all()
    assert first.validation is not None
    ids = first.validation.window(0, len(first.validation))
    text = first.tokenizer.decode(ids.tolist())
    assert len(text.encode()) == first.validation_bytes > len(ids)


def test_merges_are_learned_from_training_documents_alone(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    words = [f"{chr(0x4E00 + number)}" * 8 for number in range(40)]
    for number, word in enumerate(words):
        (tmp_path / f"text/{number}.txt").write_text(f"{word} " * 3)
    data = prepare(
        read_corpus([tmp_path / "text"]), tokenizer_kind="bpe", vocab_size=900, cache_dir=tmp_path
    )
    train = data.tokenizer.decode(data.train.window(0, len(data.train)).tolist())
    lengths = {word in train: len(data.tokenizer.encode(word)) for word in words}
    assert lengths[True] == 1 < lengths[False]


def test_a_sample_of_a_large_corpus_is_the_same_however_it_is_read(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = BpeTokenizer.train.__func__

    def train(cls: type[BpeTokenizer], texts: list[str], *, vocab_size: int) -> BpeTokenizer:
        sizes.append(sum(map(len, texts)))
        return original(cls, texts, vocab_size=vocab_size)

    monkeypatch.setattr(BpeTokenizer, "train", classmethod(train))
    monkeypatch.setattr(vocabulary, "SAMPLE_CHARACTERS", 3_000)
    one = make_data(text_dir, tmp_path / "one", num_processes=2, segment_bytes=300)
    two = make_data(text_dir, tmp_path / "two", num_processes=1)
    assert one.tokenizer.to_dict() == two.tokenizer.to_dict()
    assert sizes[0] == sizes[1]
    assert 1_500 < sizes[0] < 5_000 < sum(len(path.read_text()) for path in text_dir.iterdir())


def test_library_starts_no_thread(text_dir: Path, tmp_path: Path) -> None:
    before = psutil.Process().num_threads()
    data = make_data(text_dir, tmp_path, num_processes=1)
    data.tokenizer.encode("the quick brown fox\n" * 10_000)
    assert psutil.Process().num_threads() == before


def test_without_the_library_it_says_what_to_install(
    text_dir: Path, tmp_path: Path, tokenizer: BpeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokenizer.encode("quick")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'autotune\[bpe\]'"):
        make_data(text_dir, tmp_path)
    restored = tokenizer_from_dict(tokenizer.to_dict())
    assert restored.decode(ids) == "quick"
    with pytest.raises(ConfigError, match=r"pip install 'autotune\[bpe\]'"):
        restored.encode("quick")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_impossible_settings_are_refused(text_dir: Path, tmp_path: Path) -> None:
    corpus = read_corpus([text_dir])
    with pytest.raises(ConfigError, match="at least 258"):
        prepare(corpus, tokenizer_kind="bpe", vocab_size=257, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="--tokenize ahead"):
        prepare(corpus, tokenizer_kind="bpe", vocab_size=300, mode="on-the-fly")
    with pytest.raises(ConfigError, match="65536, got 70000"):
        prepare(corpus, vocab_size=70_000, cache_dir=tmp_path)
