from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mm_rec import PRESETS, ModelConfig

SMALL = ModelConfig(
    width=32,
    num_layers=2,
    num_heads=2,
    vocab_size=300,
    max_seq_len=128,
    chunk_len=8,
    memory_levels=(16, 8, 4),
)

WORDS = "the quick brown fox jumps over a lazy dog while many small birds sing in old trees"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small() -> ModelConfig:
    return SMALL


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(PRESETS, "test", SMALL)
    return "test"


@pytest.fixture
def text_dir(tmp_path: Path) -> Path:
    """Forty small documents, with characters of one to four bytes."""
    directory = tmp_path / "text"
    directory.mkdir()
    words = WORDS.split()
    for number in range(40):
        rotated = words[number % 17 :] + words[: number % 17]
        text = f"{number} naïve → 🌳 " + " ".join(rotated * (1 + number % 5)) + "\n"
        (directory / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return directory
