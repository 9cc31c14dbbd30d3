"""What the ranks of one job tell each other, in the store that torch.distributed gives the job.

One rank leads: it has the line to the coordinator. It gives orders to all others, which follow
them one after another, and it collects what they report. Nothing listens for this: the store is
that of the training itself, and orders are strings of JSON.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import os
import time
from typing import Any

from autotune.instrument.ranks import Place, is_initialized
from autotune.ipc.channel import Message

# Waiting for a rank that trains goes on for as long as the coordinator lets it.
_FOR_EVER = datetime.timedelta(days=365)
# For so long the first rank waits until all others have read why the job cannot go on.
_FAREWELL_S = 5.0
# While the leader waits for a report, it looks for that, or for a failure, with such pauses.
_LEAST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.02


class RankFailedError(Exception):
    """Another rank said that it cannot go on; `message` is what it would tell the coordinator."""

    def __init__(self, rank: int, message: Message) -> None:
        super().__init__(f"rank {rank}: {message.get('message')}")
        self.message = {**message, "rank": rank}


class RankLink:
    """The line between the ranks of a job.

    Args:
        store: A torch.distributed.Store that all of them share.
        place: Of this process.

    Attributes:
        leader: The rank that gives orders.
        remote: The ranks that cannot reach the coordinator.
    """

    def __init__(self, store: Any, place: Place) -> None:  # noqa: ANN401
        self._store = store
        self._place = place
        self.leader = 0
        self.remote: tuple[int, ...] = ()
        self._num_orders = 0

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self._place.rank

    @property
    def leads(self) -> bool:
        """Whether this rank gives the orders."""
        return self._place.rank == self.leader

    def meet(self, start: str | None, limit_s: float | None = None) -> tuple[str, ...]:
        """Wait until all ranks are here, and agree on who leads.

        Args:
            start: What tells the coordinator that this rank can reach; None if it reaches none.
            limit_s: Longest time to wait; None for no limit.

        Returns:
            The different starts of all ranks: more than one where several coordinators lead.

        Raises:
            RuntimeError: They were not all here in time.
        """
        limit = _FOR_EVER if limit_s is None else datetime.timedelta(seconds=limit_s)
        self._set(f"met/{self._place.rank}", {"start": start})
        if self._place.rank == 0:
            ranks = range(self._place.world_size)
            starts = [self._wait_for(f"met/{rank}", limit)["start"] for rank in ranks]
            self._set("met", {"starts": starts})
        starts = self._wait_for("met", limit)["starts"]
        reached = [rank for rank, found in enumerate(starts) if found is not None]
        self.leader = min(reached, default=0)
        self.remote = tuple(rank for rank, found in enumerate(starts) if found is None)
        found = tuple(dict.fromkeys(found for found in starts if found is not None))
        if len(found) > 1:
            self._see_off()
        return found

    def _see_off(self) -> None:
        """Let all ranks read what this job cannot go on for, before the one with the store ends."""
        self._set(f"read/{self._place.rank}", {})
        if self._place.rank == 0:
            others = [f"read/{rank}" for rank in range(self._place.world_size)]
            with contextlib.suppress(RuntimeError):
                self._store.wait(others, datetime.timedelta(seconds=_FAREWELL_S))

    def order(self, **message: Any) -> None:  # noqa: ANN401
        """Give an order to all other ranks."""
        self._num_orders += 1
        self._set(f"order/{self._num_orders}", message)

    def next_order(self) -> Message:
        """Block, without using any CPU, until the leader gives the next order."""
        self._num_orders += 1
        return self._wait_for(f"order/{self._num_orders}")

    def report(self, **message: Any) -> None:  # noqa: ANN401
        """Answer the last order."""
        self._set(f"report/{self._num_orders}/{self._place.rank}", message)

    def reports(self) -> list[Message]:
        """What all other ranks answer to the last order, by rank.

        Raises:
            RankFailedError: One of them cannot go on.
        """
        others = [rank for rank in range(self._place.world_size) if rank != self._place.rank]
        return [self._report_of(rank) for rank in others]

    def fail(self, message: Message) -> None:
        """Tell the leader that this rank cannot go on."""
        with contextlib.suppress(RuntimeError):
            self._set("failed", {**message, "rank": self._place.rank})

    def find_failure(self, limit_s: float = 0.0) -> RankFailedError | None:
        """What another rank said when it failed, if one does within so many seconds."""
        end_s = time.monotonic() + limit_s
        with contextlib.suppress(RuntimeError):
            while not self._store.check(["failed"]):
                if time.monotonic() >= end_s:
                    return None
                time.sleep(0.02)
            message = self._wait_for("failed")
            rank = message.pop("rank")
            return None if rank == self._place.rank else RankFailedError(rank, message)
        return None

    def _report_of(self, rank: int) -> Message:
        key = f"report/{self._num_orders}/{rank}"
        pause_s = _LEAST_PAUSE_S
        while not self._store.check([key]):
            failure = self.find_failure()
            if failure is not None:
                raise failure
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return self._wait_for(key)

    def _set(self, key: str, message: Message) -> None:
        self._store.set(key, json.dumps(message))

    def _wait_for(self, key: str, limit: datetime.timedelta = _FOR_EVER) -> Message:
        self._store.wait([key], limit)
        message: Message = json.loads(self._store.get(key))
        return message


def has_store() -> bool:
    """Whether the ranks of this process's job share a store by now."""
    return is_initialized() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def open_link(place: Place) -> RankLink | None:
    """The line to the other ranks; None where there is no store yet.

    That of the job once torch.distributed is initialised; before, torchrun's agent has one for the
    ranks that it starts. Source: torch.distributed.elastic.agent.server.api and
    torch.distributed.rendezvous (TORCHELASTIC_USE_AGENT_STORE).
    """
    if place.world_size == 1 or not has_store():
        return None
    distributed: Any = importlib.import_module("torch.distributed")
    if is_initialized():
        store = distributed.distributed_c10d._get_default_store()
        # A client of its own: one that waits would hold up torch's own threads.
        clone = getattr(store, "clone", None)
        store = store if clone is None else clone()
    else:
        store = distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
        )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return RankLink(distributed.PrefixStore(f"autotune/{attempt}", store), place)
