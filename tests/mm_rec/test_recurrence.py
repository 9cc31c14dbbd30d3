from __future__ import annotations

import torch

from mm_rec.recurrence import Recurrence


def test_initial_decays_are_spread_and_the_state_keeps_the_scale_of_its_input() -> None:
    torch.manual_seed(0)
    recurrence = Recurrence(64)
    recurrence.reset_time_scales()
    gamma = recurrence.decay(torch.zeros(1, 1, 64), torch.zeros(1, 1, 64))
    assert gamma.min() < 0.4
    assert gamma.max() > 0.95
    ones = torch.ones(1, 400, 64)
    with torch.no_grad():
        recurrence.weight_h.zero_()
        recurrence.gate_z.weight.zero_()
        for network in (recurrence.decay.from_z, recurrence.decay.from_k):
            network[-1].weight.zero_()  # type: ignore[operator]
    h, _ = recurrence(ones, ones, recurrence.initial_state(1))
    assert (h[0, -1] > 0.9).all()
    assert (h[0, -1] < 2.0).all()
