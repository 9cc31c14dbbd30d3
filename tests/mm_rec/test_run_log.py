from __future__ import annotations

import io
from pathlib import Path

import pytest

from mm_rec import OutputError
from mm_rec.run_log import MetricsFile, ProgressLine, StepClock


class FakeTime:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_sustained_rate_leaves_out_warm_up_and_pauses() -> None:
    time = FakeTime()
    clock = StepClock(time)
    for step in range(300):
        time.now_s += 5.0 if step < 10 else 0.5
        clock.mark()
        if step % 50 == 0:
            with clock.paused():
                time.now_s += 60.0
    line = clock.sustained(samples_per_step=16, tokens_per_step=8192)
    assert line == (
        "sustained: 32.0 samples/s, 16384 tokens/s "
        "(after 10 steps of warm-up, 290 steps in 145.0 s)"
    )
    assert clock.seconds_per_step(50) == pytest.approx(0.5)


def test_a_short_run_is_warmed_up_for_half_of_it() -> None:
    time = FakeTime()
    clock = StepClock(time)
    assert "no step" in clock.sustained(samples_per_step=1, tokens_per_step=1)
    for _ in range(3):
        time.now_s += 1.0
        clock.mark()
    line = clock.sustained(samples_per_step=1, tokens_per_step=1)
    assert "(after 1 steps of warm-up, 2 steps in 2.0 s)" in line


def test_resuming_drops_metrics_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    metrics = MetricsFile(path, keep_up_to_step=2)
    metrics.write(step=3, loss=1.5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.5}\n'
    metrics.close()
    with pytest.raises(OutputError, match="cannot write"):
        MetricsFile(tmp_path / "absent" / "metrics.jsonl", keep_up_to_step=0)


def test_progress_off_a_terminal_is_plain_lines() -> None:
    stream = io.StringIO()
    progress = ProgressLine(stream)
    assert not progress.due()
    progress.show(step=10, total_steps=40, loss=2.0, seconds_per_step=2.0, tokens=1024)
    progress.close()
    assert stream.getvalue() == "step 10/40  loss 2.0000  512 tokens/s  0:01:00 left\n"
