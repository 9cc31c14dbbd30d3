"""A fleet while it runs: the machines, and what their studies hold so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from autotune.errors import AutotuneError
from autotune.fleet.engines import Job, State
from autotune.report.machines import KindView, table_of
from autotune.report.progress import say

_LOOK_EVERY_S = 5.0
_OVER = (State.DONE, State.FAILED, State.LOST)


def watch(
    console: Console, jobs: Sequence[Job], read: Callable[[], Sequence[KindView]]
) -> dict[Job, State]:
    """Show how the runs go until all are over; gives how each ended.

    On a terminal this is one table that changes, elsewhere a line for each change.

    Args:
        console: Where it is shown.
        jobs: The runs.
        read: Gives the studies that they write.
    """
    states: dict[Job, State] = {}
    live = (
        Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    )
    if live is not None:
        live.start()
    try:
        while True:
            for job in jobs:
                before = states.get(job)
                if before in _OVER:
                    continue
                states[job] = now = job.state()
                if now is not before and (live is None or now in _OVER):
                    say(console, _line(job, now))
            if live is not None:
                live.update(Group(_jobs(states), *_studies(read)), refresh=True)
            if all(state in _OVER for state in states.values()):
                return states
            time.sleep(_LOOK_EVERY_S)
    finally:
        if live is not None:
            live.stop()


def _line(job: Job, state: State) -> str:
    reason = job.reason() if state in (State.FAILED, State.LOST) else ""
    return f"{job.name}: {state}" + (f": {reason}" if reason else "")


def _jobs(states: dict[Job, State]) -> Table:
    table = Table("machine", "run", title="fleet", title_justify="left")
    for job, state in states.items():
        table.add_row(job.name, str(state))
    return table


def _studies(read: Callable[[], Sequence[KindView]]) -> list[Table]:
    """The studies so far; none where there are none yet, or the server is away."""
    try:
        return [table_of(read())]
    except AutotuneError:
        return []
