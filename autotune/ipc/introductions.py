"""Takes the connections of started processes, and tells which of them belong together."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Sequence
from typing import ClassVar

from autotune.config import ThroughputConfig
from autotune.ipc.channel import Channel, ChannelClosedError, Listener, Message
from autotune.measurement import Failure, FailureCause
from autotune.validation import validate

# Whoever connects introduces itself at once.
_FIRST_MESSAGE_DEADLINE_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a started command says of itself when it calls `load_config`.

    Attributes:
        pid: The process that called.
        rank: Its rank where several start together (torchrun, mp.spawn), else 0.
        world_size: How many start together.
        is_distributed: Whether it is started, or has begun, as part of a job of torch.distributed,
            be it the only process of that job.
        default: The script's own settings: the baseline.
        effective_batch_size: Samples per optimizer step that the script asks for.
        config_path: The settings file that it would load in training.
        default_num_threads: Intra-op threads that torch chose here by itself.
        fork_obstacle: Why the process cannot be forked, None if it can.
        versions: Of Python and of torch.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "ignore"}

    pid: int
    rank: int
    world_size: int
    is_distributed: bool = False
    default: ThroughputConfig
    effective_batch_size: int | None
    config_path: str | None
    default_num_threads: int | None
    fork_obstacle: str | None
    versions: dict[str, str]


class Reception:
    """Takes connections, and keeps those that are asked for later.

    Anybody who connects without being expected (a process left over from an earlier start) is
    turned away.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._waiting: dict[str, list[tuple[Channel, Message]]] = {}

    def expect(self, start: str) -> None:
        """Let the processes of a start connect from now on."""
        self._waiting[start] = []

    def forget(self, start: str) -> None:
        """Turn the processes of a start away, those included that nobody asked for yet."""
        for channel, _ in self._waiting.pop(start, ()):
            channel.close()

    def accept(
        self, start: str, deadline_s: float, process: subprocess.Popen[bytes] | None = None
    ) -> tuple[Channel, Message] | None:
        """The next connection of a start, and what it said first.

        Args:
            start: Of those that are expected.
            deadline_s: Monotonic time at which to give up.
            process: There is nothing to wait for when this has ended.
        """
        while not self._waiting[start]:
            # While a process starts, its end must be noticed too: look ten times a second. Who
            # connected in time is heard, even if nobody listened until now.
            left_s = deadline_s - time.monotonic()
            ended = process is not None and process.poll() is not None
            is_there = self._take_one(0.0 if ended else min(max(left_s, 0.0), 0.1))
            if not is_there and (ended or left_s <= 0):
                return None
        return self._waiting[start].pop(0)

    def find_second_rank(self, start: str) -> Failure | None:
        """What to say where a process has connected after all ranks of its start had."""
        while self._take_one(0.0):
            pass
        waiting = self._waiting.get(start, ())
        return same_rank(rank=_rank_in(waiting[0][1])) if waiting else None

    def _take_one(self, timeout_s: float) -> bool:
        """Take the next connection; says whether one came in time."""
        channel = self._listener.accept(timeout_s)
        if channel is None:
            return False
        try:
            message = channel.receive(_FIRST_MESSAGE_DEADLINE_S)
        except ChannelClosedError:
            message = {}
        waiting = self._waiting.get(str(message.get("start")))
        if waiting is None:
            channel.close()
        else:
            waiting.append((channel, message))
        return True


def introduce(message: Message) -> Introduction:
    """What a process said of itself.

    Raises:
        BadInputError: It is of another version of autotune.
    """
    return validate(Introduction, message, source="the command")


def check_ranks(introductions: Sequence[Introduction]) -> Failure | None:
    """What is wrong with the ranks that have introduced themselves so far, if anything is."""
    ranks = [found.rank for found in introductions]
    twice = [rank for rank in ranks if ranks.count(rank) > 1]
    return same_rank(twice[0]) if twice else None


def same_rank(rank: int) -> Failure:
    """Two processes of one start that both say they are this rank."""
    return Failure(
        cause=FailureCause.RANKS_UNCLEAR,
        message="two processes of the command call autotune.load_config, and both are rank "
        f"{rank}: call torch.distributed.init_process_group before load_config, or start them "
        "with torchrun",
    )


def missing_ranks(introductions: Sequence[Introduction]) -> str:
    """Which ranks have not introduced themselves; of `introductions` there is at least one."""
    world_size = max(found.world_size for found in introductions)
    missing = sorted({*range(world_size)} - {found.rank for found in introductions})
    names = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    return f"rank{'s' if len(missing) > 1 else ''} {names} of {world_size}"


def _rank_in(message: Message) -> int:
    rank = message.get("rank")
    return rank if isinstance(rank, int) else 0
