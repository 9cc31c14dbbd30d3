"""Takes the connections of started processes, and tells which of them belong together."""

from __future__ import annotations

import contextlib
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
        meets: Whether it asks the other ranks, some of which may run on other machines, and then
            says how many of them cannot connect.
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
    meets: bool = False
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


class Arrivals:
    """The ranks of one start that have connected by now.

    Ranks on other machines cannot. Where there may be some, those that have connected ask them by
    the store of their job, and say how many there are.
    """

    def __init__(self) -> None:
        self._found: list[tuple[Channel, Introduction]] = []
        self._meetings: dict[int, _Meeting] = {}

    @property
    def introductions(self) -> list[Introduction]:
        """What they said of themselves."""
        return [who for _, who in self._found]

    @property
    def waits_for_others(self) -> bool:
        """Whether it is not known yet how many will connect."""
        return bool(self._found) and self._num_expected() is None

    @property
    def is_complete(self) -> bool:
        """Whether all are here."""
        number = self._num_expected()
        return number is not None and len(self._found) >= number

    def add(self, channel: Channel, message: Message) -> Failure | None:
        """Note another one; gives what is wrong with the ranks so far, if anything is."""
        self._found.append((channel, introduce(message)))
        return check_ranks(self.introductions)

    def by_rank(self) -> list[tuple[Channel, Introduction]]:
        """All of them, the leading one first."""
        return sorted(self._found, key=lambda pair: pair[1].rank)

    def find_fault(self) -> Failure | None:
        """What is wrong with a job whose ranks have met; to be asked once all are here."""
        for place in range(len(self._found)):
            self._take_meeting(place, _FIRST_MESSAGE_DEADLINE_S)
        starts = {start for meeting in self._meetings.values() for start in meeting.starts}
        return two_leaders() if len(starts) > 1 else None

    def _num_expected(self) -> int | None:
        if not self._found:
            return None
        _, first = self._found[0]
        if not first.meets:
            return first.world_size
        for place in range(len(self._found)):
            self._take_meeting(place, 0.0)
        meeting = next(iter(self._meetings.values()), None)
        if meeting is None:
            return None
        # Those that another coordinator started will not come here.
        return first.world_size - meeting.num_remote if len(meeting.starts) == 1 else 1

    def _take_meeting(self, place: int, limit_s: float) -> None:
        channel, who = self._found[place]
        if who.meets and place not in self._meetings and channel.poll(limit_s):
            with contextlib.suppress(ChannelClosedError):
                self._meetings[place] = validate(_Meeting, channel.receive(), source="the command")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Meeting:
    """What a rank says when all ranks of its job are there.

    Attributes:
        num_remote: How many of them cannot connect.
        starts: What tells the coordinators that they reach.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "ignore"}

    num_remote: int
    starts: tuple[str, ...]


def two_leaders() -> Failure:
    """Ranks of one job that were started by more than one `autotune run`."""
    return Failure(
        cause=FailureCause.RANKS_UNCLEAR,
        message="the ranks of this job were started by more than one `autotune run`: start it "
        "once, around what starts them all (autotune run -- srun torchrun ...)",
    )


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
