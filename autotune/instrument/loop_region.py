"""Where in the source the training loop stands, and whether the process is still inside it.

What follows the training (a last checkpoint, an upload) must not run in a trial. The loop may be
left and entered again, though: once per epoch, for an evaluation, after a `break`. So the training
is taken to last as long as the outermost loop from which its batches are asked for.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import functools
import gc
import inspect
import linecache
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType

_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """A frame of the stack from which a batch was asked for.

    The frame itself is not kept: it would keep the loop's iterator alive.
    """

    frame_id: int
    code: CodeType
    line: int
    instruction: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Lines:
    """The loop: the frame that runs it, and its first and last line."""

    frame_id: int
    code: CodeType
    first: int
    last: int


class LoopRegion:
    """The lines of the training loop, found from the frame that asks for a batch.

    Args:
        frame: It. Generators between (`tqdm`, `cycle`) do not count.
    """

    def __init__(self, frame: FrameType | None) -> None:
        self._thread = threading.get_ident()
        self._places = [
            _Place(id(found), found.f_code, found.f_lineno, found.f_lasti)
            for found in _outward(frame)
            if not found.f_code.co_flags & _SUSPENDABLE and not _is_launcher(found.f_code)
        ]
        self._lines: _Lines | None = None
        self._is_searched = False

    @property
    def is_left(self) -> bool:
        """Whether the thread that trains stands behind the loop; False where that is unknown."""
        lines = self._find()
        if lines is None:
            return False
        for frame in _outward(sys._current_frames().get(self._thread)):
            if id(frame) == lines.frame_id and frame.f_code is lines.code:
                return not lines.first <= (frame.f_lineno or 0) <= lines.last
        return True

    @property
    def is_for(self) -> bool:
        """Whether a `for` asks for the batches, which gives its iterator up when it ends."""
        if not self._places:
            return False
        place = self._places[0]
        return dis.opname[place.code.co_code[place.instruction]].startswith("FOR_ITER")

    @property
    def ends_with_its_iterator(self) -> bool:
        """Whether the loop is over as soon as its iterator is given up.

        That is a `for` over the batches with no other loop around it, or one without source.
        """
        lines = self._find()
        if lines is None:
            return True
        return (
            self.is_for
            and lines.frame_id == self._places[0].frame_id
            and len(_loops_around(self._places[0])) == 1
        )

    def is_passed_by(self, error: BaseException) -> bool:
        """Whether an exception came out of the function that asks for the batches."""
        if not self._places:
            return False
        code = self._places[0].code
        return any(frame.f_code is code for frame, _ in traceback.walk_tb(error.__traceback__))

    def _find(self) -> _Lines | None:
        if not self._is_searched:
            self._is_searched = True
            for place in reversed(self._places):
                loops = _loops_around(place)
                if loops:
                    first, last = loops[0]
                    self._lines = _Lines(place.frame_id, place.code, first, last)
                    break
        return self._lines


def _is_launcher(code: CodeType) -> bool:
    """Whether a function is Python's own, which may start the training from a loop of its own."""
    path = code.co_filename
    return path.startswith((_STANDARD_LIBRARY, "<frozen ")) and "site-packages" not in path


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _loops_around(place: _Place) -> list[tuple[int, int]]:
    """First and last lines of the loops around a place in the function it is in, outermost first.

    The last line is that of the body: an `else` comes after the loop.
    """
    return [loop for loop in _loops_in(place.code) if loop[0] <= place.line <= loop[1]]


# Each pass of the training is looked at, and to parse a framework's trainer takes 0.1 s.
@functools.cache
def _loops_in(code: CodeType) -> tuple[tuple[int, int], ...]:
    """First and last lines of the loops in a function, by their beginning."""
    tree = _parsed(code.co_filename)
    if tree is None:
        return ()
    return tuple(
        sorted(
            (node.lineno, node.body[-1].end_lineno or node.lineno)
            for node in _of_function(tree, code)
            if isinstance(node, _LOOPS)
        )
    )


@functools.lru_cache(maxsize=2)
def _parsed(path: str) -> ast.AST | None:
    """The source in a file; None where there is none."""
    try:
        return ast.parse("".join(linecache.getlines(path)))
    except (SyntaxError, ValueError):
        return None


def _of_function(tree: ast.AST, code: CodeType) -> Iterator[ast.AST]:
    """The nodes of one function's body, or of the module's; not those of functions within it."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    if code.co_name == "<module>":
        roots: list[ast.AST] = [tree]
    else:
        # A decorated function's code begins with its first decorator.
        roots = [
            node
            for node in ast.walk(tree)
            if isinstance(node, functions[:2])
            and node.name == code.co_name
            and code.co_firstlineno
            in (node.lineno, *(decorator.lineno for decorator in node.decorator_list))
        ]
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(
            child for child in ast.iter_child_nodes(node) if not isinstance(child, functions)
        )


def is_unwinding(frame: FrameType | None) -> bool:
    """Whether an exception is on its way out through a frame, or those that called it.

    A loop that breaks and a loop whose body raises both give up their iterator. Only in the second
    case is there a traceback that stands at the current line of one of these frames. (Python 3.11
    attaches the traceback to the exception only where it is caught, hence the search for the
    traceback itself.)
    """
    lines = {
        (id(found), found.f_lineno)
        for found in _outward(frame)
        # A generator between (tqdm) is closed by an exception of its own, which tells nothing.
        if not found.f_code.co_flags & inspect.CO_GENERATOR
    }
    return any(
        (id(candidate.tb_frame), candidate.tb_lineno) in lines
        for candidate in gc.get_objects()
        # Not isinstance, which asks objects for their __class__, and some answer with warnings.
        if type(candidate) is TracebackType
    )
