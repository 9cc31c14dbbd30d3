"""How far the preparation of a large corpus has come, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# A preparation that is over sooner shows nothing.
BAR_AFTER_S = 1.0
LINE_AFTER_S = 5.0


class PassProgress:
    """A bar per pass over the corpus on a terminal, a single line elsewhere.

    A context manager: the bar is gone when it is left.
    """

    def __init__(self, *, num_bytes: int, visible: bool) -> None:
        """Show nothing yet; a pass is over when `num_bytes` have been reported."""
        self.num_bytes = num_bytes
        self.visible = visible
        self._on_terminal = sys.stderr.isatty()
        self._start_s = time.monotonic()
        self._label = ""
        self._done = 0
        self._line_shown = False
        self._bar: Progress | None = None
        self._bar_task: TaskID | None = None

    def __enter__(self) -> PassProgress:
        """Show nothing yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def start(self, label: str) -> None:
        """Begin a pass over the whole corpus."""
        self._label, self._done = label, 0
        self.advance(0)

    def advance(self, num_bytes: int) -> None:
        """Note that so many more bytes have been read."""
        self._done += num_bytes
        elapsed_s = time.monotonic() - self._start_s
        if not self.visible:
            return
        if self._on_terminal:
            if elapsed_s >= BAR_AFTER_S:
                self._show_bar()
        elif elapsed_s >= LINE_AFTER_S and not self._line_shown:
            self._line_shown = True
            print(f"preparing {self.num_bytes / 1e6:,.0f} MB of text ...", file=sys.stderr)

    def _show_bar(self) -> None:
        if self._bar is None or self._bar_task is None:
            # Imported here: most starts have their data prepared already.
            from rich.console import Console
            from rich.progress import Progress

            # Without its own refreshing, which would take a thread.
            self._bar = Progress(
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar_task = self._bar.add_task("", total=self.num_bytes)
            self._bar.start()
        self._bar.update(
            self._bar_task, description=self._label, completed=self._done, refresh=True
        )
