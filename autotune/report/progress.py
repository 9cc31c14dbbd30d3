"""What a person sees while a run goes on."""

from __future__ import annotations

from rich.console import Console
from rich.live import Live
from rich.text import Text

from autotune.measurement import figure
from autotune.tuning.progress import Progress


def say(console: Console, line: str) -> None:
    """Print a line as it is: no markup, no wrapping, so that paths and commands can be copied."""
    console.print(Text(line), soft_wrap=True)


class ConsoleObserver:
    """Shows progress: one live line on a terminal, a plain line now and then elsewhere.

    It draws only when it is told something, which is never while a block is timed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = (
            Live(console=console, auto_refresh=False, transient=True)
            if console.is_terminal
            else None
        )
        self._last_best = 0.0
        self._num_lines = 0

    def __enter__(self) -> ConsoleObserver:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        say(self._console, text)

    def update(self, progress: Progress) -> None:
        """Show how far the run is."""
        line = _progress_line(progress)
        if self._live is not None:
            self._live.update(Text(line), refresh=True)
        elif progress.best > 1.02 * self._last_best or self._num_lines % 10 == 0:
            say(self._console, line)
        self._num_lines += 1
        self._last_best = max(self._last_best, progress.best)


class SilentObserver:
    """Shows nothing."""

    def __enter__(self) -> SilentObserver:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Nothing."""

    def update(self, progress: Progress) -> None:
        """Nothing."""


def _progress_line(progress: Progress) -> str:
    minutes, seconds = divmod(round(progress.left_s), 60)
    ratio = progress.best / progress.baseline if progress.baseline else 0.0
    best = f"{figure(progress.best, progress.best_error)} {progress.unit}/s"
    if progress.probability is None:
        how_far = (
            f"{progress.num_measured}/{progress.num_configurations} measured, "
            f"{progress.num_pruned} pruned"
        )
        sure = ""
    else:
        how_far = f"{progress.num_measured}/{progress.num_configurations} measured"
        sure = f", within 2 % of the best: {100 * progress.probability:.0f} %"
    return (
        f"{progress.phase.value}: {how_far} | best {best} = {ratio:.2f}x baseline "
        f"({progress.best_config.summary}){sure} | at most {minutes}:{seconds:02d} left"
    )
