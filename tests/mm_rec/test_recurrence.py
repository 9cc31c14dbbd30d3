from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm_rec.recurrence import Recurrence, scan


def plain_recurrence(
    z_btd: Tensor, gamma_btd: Tensor, gate_z_btd: Tensor, weight_h: Tensor, h_bd: Tensor
) -> Tensor:
    """The recurrence as published, a token at a time, its decay divided by 1.2."""
    width = z_btd.shape[2]
    bias_s, gate_m = gate_z_btd[..., :width], gate_z_btd[..., width:]
    states = []
    for t in range(z_btd.shape[1]):
        z, gamma, before = z_btd[:, t], gamma_btd[:, t], h_bd
        s = torch.sigmoid(before @ weight_h[:width].t() + bias_s[:, t])
        g = torch.sigmoid(before @ weight_h[width:].t() + gate_m[:, t])
        core = z * s + gamma * before / 1.2
        mix = (1 - g) * before / 1.2 + g * z + gamma * before / 1.2
        h_bd = core + 0.1 * mix
        states.append(h_bd)
    return torch.stack(states, dim=1)


def make_inputs(batch: int, time: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        randn(batch, time, width),
        torch.sigmoid(randn(batch, time, width)),
        randn(batch, time, 2 * width),
        randn(2 * width, width) / width**0.5,
        randn(batch, width),
    ]


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [
        ((1, 1, 4), torch.float64, 1e-12),
        ((2, 7, 8), torch.float64, 1e-12),
        ((3, 200, 16), torch.float64, 1e-11),
        ((2, 200, 16), torch.float32, 2e-4),
    ],
)
def test_scan_equals_a_plain_float64_loop_forward_and_backward(
    shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    exact = [value.requires_grad_() for value in make_inputs(*shape)]
    fast = [value.detach().to(dtype).requires_grad_() for value in exact]
    expected, got = plain_recurrence(*exact), scan(*fast)
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weights).sum().backward()
    (got * weights.to(dtype)).sum().backward()
    for value, reference in zip(fast, exact, strict=True):
        assert value.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(
            value.grad.double(), reference.grad, rtol=tolerance, atol=10 * tolerance
        )


def test_scan_passes_gradcheck() -> None:
    assert torch.autograd.gradcheck(scan, [v.requires_grad_() for v in make_inputs(2, 3, 4)])


def test_state_stays_bounded_with_the_slowest_decay() -> None:
    width, time = 8, 5_000
    gamma = torch.full((1, time, width), 1.0 - 1e-6)
    # The mixing gate is shut (g = 0), where the published decay is 1.2 and overflows.
    gates = torch.full((1, time, 2 * width), -50.0)
    h = scan(
        torch.ones(1, time, width),
        gamma,
        gates,
        torch.zeros(2 * width, width),
        torch.ones(1, width),
    )
    assert h.isfinite().all()
    assert h.abs().max() <= 1.0


def test_initial_decays_are_spread() -> None:
    torch.manual_seed(0)
    recurrence = Recurrence(64)
    recurrence.decay.reset_decay()
    gamma = recurrence.decay(torch.zeros(1, 1, 64), torch.zeros(1, 1, 64))
    assert gamma.min() < 0.4
    assert gamma.max() > 0.95
