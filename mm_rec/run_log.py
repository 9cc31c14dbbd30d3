"""What a run tells: its metrics file, its progress line, its sustained throughput."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from mm_rec.errors import OutputError

FILE_NAME = "metrics.jsonl"
NUM_WARMUP_STEPS = 10
TERMINAL_INTERVAL_S, PLAIN_INTERVAL_S = 0.5, 10.0


class StepClock:
    """Time spent on optimizer steps, data included, validation and checkpoints left out."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._paused_s = 0.0
        self._start_s = now()
        self._marks_s = [0.0]

    def mark(self) -> None:
        """Note the end of an optimizer step."""
        self._marks_s.append(self._now() - self._start_s - self._paused_s)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside out of the count."""
        start_s = self._now()
        try:
            yield
        finally:
            self._paused_s += self._now() - start_s

    @property
    def num_steps(self) -> int:
        """Steps noted so far."""
        return len(self._marks_s) - 1

    def seconds_per_step(self, last: int) -> float:
        """Return the mean over the last `last` steps; at least one must have been noted."""
        last = min(last, self.num_steps)
        return (self._marks_s[-1] - self._marks_s[-1 - last]) / last

    def sustained(self, *, samples_per_step: int, tokens_per_step: int) -> str:
        """Return the line on throughput after a short warm-up."""
        if not self.num_steps:
            return "sustained: not measured (no step)"
        # At most half of a short run is warm-up, so that something is left to measure.
        warmup = min(NUM_WARMUP_STEPS, self.num_steps // 2)
        steps = self.num_steps - warmup
        seconds = self._marks_s[-1] - self._marks_s[warmup]
        rate = steps / seconds
        return (
            f"sustained: {rate * samples_per_step:.1f} samples/s, "
            f"{rate * tokens_per_step:.0f} tokens/s "
            f"(after {warmup} steps of warm-up, {steps} steps in {seconds:.1f} s)"
        )


class MetricsFile:
    """A JSON object per line, appended; on resuming, lines after the checkpoint are dropped.

    Raises:
        OutputError: It cannot be written.
    """

    def __init__(self, path: Path, *, keep_up_to_step: int) -> None:
        self.path = path
        try:
            temporary = path.with_suffix(".writing")
            temporary.write_text("".join(_lines_up_to(path, keep_up_to_step)), encoding="utf-8")
            temporary.replace(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def write(self, **values: float | int) -> None:
        """Append one record.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            self._file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines_up_to(path: Path, step: int) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except (ValueError, KeyError, TypeError):
            # The last line of a killed run may be half written.
            continue


class ProgressLine:
    """One line that is rewritten on a terminal, a new line now and then elsewhere."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._on_terminal = stream.isatty()
        self._interval_s = TERMINAL_INTERVAL_S if self._on_terminal else PLAIN_INTERVAL_S
        self._last_s = time.monotonic()

    def due(self) -> bool:
        """Return whether enough time has passed since the last line."""
        return time.monotonic() - self._last_s >= self._interval_s

    def show(
        self, *, step: int, total_steps: int, loss: float, seconds_per_step: float, tokens: int
    ) -> None:
        """Write the line; `tokens` is the number per optimizer step."""
        left = timedelta(seconds=round((total_steps - step) * seconds_per_step))
        text = (
            f"step {step}/{total_steps}  loss {loss:.4f}  "
            f"{tokens / seconds_per_step:.0f} tokens/s  {left} left"
        )
        # "\x1b[K" clears what a longer line before has left.
        self._stream.write(f"\r{text}\x1b[K" if self._on_terminal else f"{text}\n")
        self._stream.flush()
        self._last_s = time.monotonic()

    def close(self) -> None:
        """End the line on a terminal, so that what follows starts on its own."""
        if self._on_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
