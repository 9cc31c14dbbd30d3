from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import language_models
from benchmarks.baselines import CharLSTM, CharTransformer, count_parameters, sized
from benchmarks.language_models import (
    Contender,
    HeldOut,
    hold_out,
    logits_loss,
    lr_share,
    make_contenders,
    train_side_by_side,
)
from mm_rec import data

VOCAB_SIZE = 50
SEQ_LEN = 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Clock:
    """Stands still but for what the training costs."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(language_models, "time", clock)
    return clock


@pytest.fixture
def prepared(tmp_path: Path) -> data.PreparedData:
    text = "naïve birds sing in old trees while a lazy dog sleeps → 🌳 "
    for number in range(20):
        content = f"{number} " + text * (2 + number % 5)
        (tmp_path / f"{number:02}.txt").write_text(content, encoding="utf-8")
    return data.prepare(
        data.read_corpus([tmp_path]), vocab_size=VOCAB_SIZE, cache_dir=tmp_path / "cache"
    )


@pytest.fixture(params=[CharLSTM, CharTransformer])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param(vocab_size=VOCAB_SIZE, width=16).eval()


def contender(name: str, seen: list[Tensor], clock: Clock, **changes: float) -> Contender:
    def loss(model: nn.Module, inputs_bt: Tensor, labels_bt: Tensor) -> Tensor:
        if model.training:
            seen.extend(inputs_bt)
            clock.now_s += changes.get("step_s", 1.0)
        else:
            clock.now_s += 1_000.0
        return logits_loss(model, inputs_bt, labels_bt)

    torch.manual_seed(0)
    return Contender(
        name=name,
        model=CharLSTM(vocab_size=VOCAB_SIZE, width=16),
        peak_lr=0.01,
        batch_size=int(changes.get("batch_size", 2)),
        loss=loss,
    )


def test_output_does_not_depend_on_later_inputs(model: nn.Module) -> None:
    tokens = torch.randint(0, VOCAB_SIZE, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % VOCAB_SIZE
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


def test_output_depends_on_the_order_of_earlier_inputs(model: nn.Module) -> None:
    tokens = torch.arange(12)[None]
    swapped = tokens.clone()
    swapped[0, :2] = tokens[0, [1, 0]]
    assert not torch.allclose(model(tokens)[0, -1], model(swapped)[0, -1], atol=1e-6)


def test_contenders_have_the_size_of_mm_rec() -> None:
    sizes = [count_parameters(contender.model) for contender in make_contenders(414)]
    assert max(sizes) / sizes[-1] < 1.05
    assert min(sizes) / sizes[-1] > 0.95


def test_a_size_that_no_width_gives_is_refused() -> None:
    with pytest.raises(ValueError, match="no width"):
        sized(lambda width: nn.Linear(width, width), num_parameters=200)


def test_all_train_on_one_order_of_windows_for_the_same_time_of_their_own(
    prepared: data.PreparedData, clock: Clock
) -> None:
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    results = train_side_by_side(
        (
            contender("small steps", seen[0], clock, step_s=0.5, batch_size=1),
            contender("large steps", seen[1], clock, step_s=2.0, batch_size=4),
        ),
        data.WindowDataset(prepared.train, seq_len=SEQ_LEN),
        hold_out(prepared, seq_len=SEQ_LEN, num_windows=8),
        budget_s=10.0,
        slice_s=4.0,
        num_threads=1,
    )
    # The first batch of each is the untimed one.
    first, second = torch.stack(seen[0][1:]), torch.stack(seen[1][4:])
    assert len(first) == 20
    assert len(second) == 20
    assert torch.equal(first, second)
    assert [result.num_tokens for result in results] == [20 * SEQ_LEN, 20 * SEQ_LEN]
    assert [result.tokens_per_s for result in results] == [32.0, 32.0]


def test_training_brings_the_held_out_bits_down(
    prepared: data.PreparedData, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = data.WindowDataset(prepared.train, seq_len=SEQ_LEN)
    held_out = hold_out(prepared, seq_len=SEQ_LEN, num_windows=8)
    bits = [
        train_side_by_side(
            (contender("LSTM", [], clock),), windows, held_out, budget_s=steps, num_threads=1
        )[0].bits_per_byte
        for steps in (1.0, 150.0)
    ]
    assert bits[1] < 0.7 * bits[0]
    assert capsys.readouterr().out.count("bits per byte") == 6


def test_bytes_are_those_of_the_scored_text(prepared: data.PreparedData) -> None:
    held_out: HeldOut = hold_out(prepared, seq_len=SEQ_LEN, num_windows=10_000)
    text = prepared.tokenizer.decode(held_out.windows_nt[:, 1:].flatten().tolist())
    assert held_out.num_bytes == len(text.encode()) > len(text)


def test_learning_rate_rises_to_the_peak_and_falls_to_a_tenth() -> None:
    assert lr_share(0.0) == pytest.approx(0.01)
    assert lr_share(0.05) == pytest.approx(1.0)
    assert lr_share(0.525) == pytest.approx(0.55)
    assert lr_share(1.0) == lr_share(1.5) == pytest.approx(0.1)
