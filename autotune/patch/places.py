"""Where in a script a DataLoader is made."""

from __future__ import annotations

import dataclasses
import linecache
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from autotune.system.own_code import is_own_code

# A script that makes its loader deeper in its own calls is told by so many of the innermost.
_MOST_CALLS = 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The calls of a script that make a loader.

    Attributes:
        label: "train.py:34".
        calls: As `PatchTarget.calls`.
    """

    label: str
    calls: tuple[str, ...]


def place_of(frame: FrameType | None) -> Place:
    """The place in the user's own code from which a frame was called.

    Code of installed packages does not count: the same line of a library makes every loader.
    """
    frames = list(_own_frames(frame))
    label = f"{_name(frames[0])}:{frames[0].f_lineno}" if frames else "a library"
    return Place(label=label, calls=tuple(map(_describe, frames[:_MOST_CALLS])))


def _own_frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        if is_own_code(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _describe(frame: FrameType) -> str:
    source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{_name(frame)}, {frame.f_code.co_name}: {source}"


def _name(frame: FrameType) -> str:
    return Path(frame.f_code.co_filename).name
