"""Passes over a corpus: one process or several, with progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mm_rec.data.progress import PassProgress
from mm_rec.data.reading import Report
from mm_rec.data.workers import ResultT, TaskT, default_num_processes, run_in_order

# Below it, one process is done before others have been started.
PARALLEL_BYTES = 2**23


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How passes are run.

    Attributes:
        num_processes: Processes at most; 1 does everything in this one.
        progress: Where they are shown.
    """

    num_processes: int
    progress: PassProgress

    def run(
        self,
        label: str,
        function: Callable[[TaskT, Report], ResultT],
        tasks: Sequence[TaskT],
        consume: Callable[[ResultT], None],
    ) -> None:
        """Show `label`, call `function` on every task and `consume` on every result, in order.

        Raises:
            DataError: A process was killed from outside, or could not be started.
            Exception: Whatever `function` raised first.
        """
        self.progress.start(label)
        run_in_order(
            function,
            tasks,
            consume=consume,
            report=self.progress.advance,
            num_processes=self.num_processes,
        )


def choose_num_processes(asked: int | None, num_bytes: int) -> int:
    """Return how many processes to use for a corpus of `num_bytes` unless a number was asked."""
    if asked is not None:
        return asked
    return default_num_processes() if num_bytes >= PARALLEL_BYTES else 1
