"""Where in the source the training loop stands, and whether the process is still inside it.

What follows the training (a last checkpoint, an upload) must not run in a trial. The loop may be
left and entered again, though: once per epoch, for an evaluation, after a `break`. So the training
is taken to last as long as the outermost loop from which its batches are asked for, or, where a
thread or a coroutine of its own asks for them, the outermost loop in which an optimizer steps.
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
import weakref
from collections.abc import Iterator
from types import CodeType, CoroutineType, FrameType, TracebackType
from typing import Any

from autotune.system.own_code import is_own_code

_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """A frame of the stack from which a batch was asked for, or an optimizer took a step.

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

    def have(self, frame: FrameType) -> bool:
        """Whether a frame that runs the loop, or waits in it, stands within these lines."""
        return self.first <= (frame.f_lineno or 0) <= self.last


class LoopRegion:
    """The lines of the training loop, found from a frame of this thread that is within it.

    Attributes:
        thread: The system's number of the thread.

    Args:
        frame: It. Generators between (`tqdm`, `cycle`) do not count.
        asks: Whether it asks for a batch, rather than that an optimizer takes a step there.
    """

    def __init__(self, frame: FrameType | None, *, asks: bool = True) -> None:
        self.thread = threading.get_native_id()
        self._ident = threading.get_ident()
        self._asks = asks
        self._places = [
            _Place(id(found), found.f_code, found.f_lineno, found.f_lasti)
            for found in _in_training(frame)
        ]
        self._lines: _Lines | None = None
        self._coroutine: weakref.ref[CoroutineType[Any, Any, Any]] | None = None
        self._is_searched = False

    @property
    def is_known(self) -> bool:
        """Whether a loop was found."""
        return self._find() is not None

    @property
    def is_left(self) -> bool:
        """Whether what trains stands behind the loop; False where that is unknown."""
        lines = self._find()
        if lines is None:
            return False
        for frame in _outward(sys._current_frames().get(self._ident)):
            if id(frame) == lines.frame_id and frame.f_code is lines.code:
                return not lines.have(frame)
        if not lines.code.co_flags & inspect.CO_COROUTINE:
            return True
        if self._coroutine is None:
            return False
        # While a coroutine waits, it is on no stack.
        coroutine = self._coroutine()
        waiting = None if coroutine is None else coroutine.cr_frame
        return waiting is None or not lines.have(waiting)

    def is_around(self, frame: FrameType | None) -> bool:
        """Whether the loop runs a frame of this thread.

        Where no loop is known, whether a function does from which the batches are asked for.
        """
        lines = self._find()
        runs = (
            {place.frame_id: place.code for place in self._places}
            if lines is None
            else {lines.frame_id: lines.code}
        )
        return any(runs.get(id(found)) is found.f_code for found in _outward(frame))

    @property
    def is_for(self) -> bool:
        """Whether a `for` asks for the batches, which gives its iterator up when it ends."""
        if not self._places or not self._asks:
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
        """Whether an exception came out of the function that asks for the batches.

        Where these come from elsewhere, out of the function with the loop.
        """
        if not self._places:
            return False
        lines = self._find()
        code = self._places[0].code if self._asks or lines is None else lines.code
        return any(frame.f_code is code for frame, _ in traceback.walk_tb(error.__traceback__))

    def _find(self) -> _Lines | None:
        if not self._is_searched:
            self._is_searched = True
            for place in reversed(self._places):
                loops = _loops_around(place)
                if loops:
                    first, last = loops[0]
                    self._lines = _Lines(place.frame_id, place.code, first, last)
                    self._coroutine = _coroutine_of(self._lines)
                    break
        return self._lines


def _in_training(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames below one that may run the training loop.

    What runs a coroutine has a loop of its own, whether that is Python's or a library's.
    """
    is_scheduled = False
    for found in _outward(frame):
        code = found.f_code
        is_scheduled |= bool(code.co_flags & inspect.CO_COROUTINE)
        is_between = code.co_flags & _GENERATORS or _is_launcher(code)
        if not is_between and (not is_scheduled or is_own_code(code.co_filename)):
            yield found


# By the number of their frame. To look through all objects takes 0.1 s.
_coroutines: weakref.WeakValueDictionary[int, CoroutineType[Any, Any, Any]]
_coroutines = weakref.WeakValueDictionary()


def _coroutine_of(lines: _Lines) -> weakref.ref[CoroutineType[Any, Any, Any]] | None:
    """The coroutine that runs a loop; None where none does, or `gc.freeze` has hidden it."""
    if not lines.code.co_flags & inspect.CO_COROUTINE:
        return None
    found = _coroutines.get(lines.frame_id)
    if found is None or not _runs(found, lines):
        found = next((each for each in gc.get_objects() if _runs(each, lines)), None)
    if found is None:
        return None
    _coroutines[lines.frame_id] = found
    return weakref.ref(found)


def _runs(candidate: Any, lines: _Lines) -> bool:  # noqa: ANN401
    """Whether an object is the coroutine that runs a loop."""
    # Not isinstance, which asks objects for their __class__, and some answer with warnings.
    return (
        type(candidate) is CoroutineType
        and candidate.cr_code is lines.code
        and id(candidate.cr_frame) == lines.frame_id
    )


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
