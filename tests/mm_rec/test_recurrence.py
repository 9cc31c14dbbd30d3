from __future__ import annotations

import torch

from mm_rec.recurrence import Recurrence


def test_initial_decays_are_spread() -> None:
    torch.manual_seed(0)
    recurrence = Recurrence(64)
    recurrence.decay.reset_decay()
    gamma = recurrence.decay(torch.zeros(1, 1, 64), torch.zeros(1, 1, 64))
    assert gamma.min() < 0.4
    assert gamma.max() > 0.95
