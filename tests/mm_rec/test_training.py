from __future__ import annotations

import dataclasses

import pytest
import torch

from mm_rec import MMRec, ModelConfig
from mm_rec.training import Schedule, Trainer, make_optimizer


def make_trainer(config: ModelConfig, *, bptt_len: int | None, **changes: float) -> Trainer:
    torch.manual_seed(0)
    model = MMRec(dataclasses.replace(config, dropout=0.0, **changes))
    return Trainer(
        model,
        make_optimizer(model, weight_decay=0.0),
        Schedule(peak_lr=1e-3, warmup_steps=0, total_steps=100),
        gradient_accumulation_steps=2,
        bptt_len=bptt_len,
    )


def make_windows(length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 300, (3, length + 1), generator=generator)


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    return [p.grad for p in trainer.model.parameters() if p.grad is not None]


# 8 tokens are a chunk of the small model's memory; 41 leaves an odd piece at the end.
@pytest.mark.parametrize("bptt_len", [8, 13, 40, 500])
def test_pieces_see_the_loss_of_the_whole_sample(small: ModelConfig, bptt_len: int) -> None:
    whole = make_trainer(small, bptt_len=None)
    pieces = make_trainer(small, bptt_len=bptt_len)
    for trainer in (whole, pieces):
        assert not trainer.micro_step(make_windows(41))
        assert trainer.micro_step(make_windows(41))
    # The state is carried, so only the gradients differ, and only by what flows between pieces.
    torch.testing.assert_close(pieces.loss, whole.loss)
    torch.testing.assert_close(
        pieces.grad_norm, whole.grad_norm, rtol=1e-5 if bptt_len > 41 else 0.2, atol=0.0
    )
    assert (bptt_len > 41) == torch.allclose(pieces.grad_norm, whole.grad_norm, rtol=1e-5)


def test_gradients_of_a_piece_do_not_reach_the_pieces_before(small: ModelConfig) -> None:
    trainer = make_trainer(small, bptt_len=8)
    windows = make_windows(24)
    trainer.micro_step(windows)
    got = gradients(trainer)
    state, expected = None, make_trainer(small, bptt_len=None)
    for start in range(0, 24, 8):
        output = expected.model(windows[:, start : start + 8], state)
        loss = output.cross_entropy(windows[:, start + 1 : start + 9])
        (loss / (3 * 2)).backward()
        state = output.state.detach()
    for value, reference in zip(got, gradients(expected), strict=True):
        torch.testing.assert_close(value, reference)


def test_accumulated_micro_steps_equal_one_large_step(small: ModelConfig) -> None:
    split, joined = (make_trainer(small, bptt_len=None) for _ in range(2))
    joined.gradient_accumulation_steps = 1
    windows = torch.cat((make_windows(30), make_windows(30).flip(1)))
    assert not split.micro_step(windows[:3])
    assert split.micro_step(windows[3:])
    assert joined.micro_step(windows)
    torch.testing.assert_close(split.loss, joined.loss)
    torch.testing.assert_close(split.grad_norm, joined.grad_norm, rtol=1e-4, atol=0.0)


def test_low_precision_learns_as_well(small: ModelConfig) -> None:
    exact, low = (make_trainer(small, bptt_len=None) for _ in range(2))
    low.low_precision = True
    windows = make_windows(30)
    for _ in range(40):
        exact.micro_step(windows)
        low.micro_step(windows)
    assert low.loss < 5.5
    assert low.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert low.loss.item() != exact.loss.item()
