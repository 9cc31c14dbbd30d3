from __future__ import annotations

import pytest

from mm_rec import ConfigError
from mm_rec.training import Schedule, default_warmup_steps


def test_warm_up_is_linear_and_the_cosine_ends_at_a_tenth() -> None:
    schedule = Schedule(peak_lr=1.0, warmup_steps=10, total_steps=110)
    assert [schedule.lr_at(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert schedule.lr_at(60) == pytest.approx(0.55)
    assert schedule.lr_at(110) == schedule.lr_at(10_000) == pytest.approx(0.1)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert Schedule(peak_lr=0.5, warmup_steps=0, total_steps=0).lr_at(0) == 0.5
    assert (default_warmup_steps(50), default_warmup_steps(5_000)) == (5, 100)


@pytest.mark.parametrize(
    "changes", [{"peak_lr": 0.0}, {"peak_lr": float("nan")}, {"warmup_steps": -1}]
)
def test_impossible_schedules_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Schedule(**{"peak_lr": 1.0, "warmup_steps": 0, "total_steps": 1} | changes)
