"""The first look at an untouched script: which of its loaders feeds the training."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from autotune.patch.places import Place
from autotune.patch_target import PatchTarget, target_of

# So many optimizer steps tell the training's loader from one that an evaluation between them reads.
_ENOUGH_STEPS = 3
# A script that takes so many steps without a DataLoader has none. One that computes gradients so
# often, or takes batches for so long, without an optimizer's step updates its parameters itself.
_STEPS_WITHOUT = 20
_PATIENCE_S = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A DataLoader, by the calls that made it, and how many these had made before."""

    place: Place
    ordinal: int


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What was found in one process: a target, or the reason why there is none.

    Attributes:
        target: What is tuned.
        problem: Why nothing can be, for the user.
        is_ending: Whether the process has come to its end: another one of the command may train.
    """

    target: PatchTarget | None = None
    problem: str | None = None
    is_ending: bool = False


def answer_in(message: Mapping[str, Any]) -> Answer:
    """The answer that a process gave; one that called `load_config` has introduced itself."""
    if message.get("type") != "look":
        return Answer(problem="it calls autotune.load_config by itself: run it without --patch")
    target = message["target"]
    return Answer(
        target=target and target_of(target),
        problem=message["problem"],
        is_ending=message["is_ending"],
    )


class _Followed:
    """The loaders whose batches came before events of one kind."""

    def __init__(self) -> None:
        self.num_events = self.num_after_batches = 0
        # The loaders before all of these events, and before any of them with the pass at the first.
        self.always: list[Made] | None = None
        self.ever: dict[Made, int] = {}
        self._asked: dict[Made, int] = {}

    def give_batch(self, made: Made, number: int) -> None:
        """Note a batch in a loader's pass of this number."""
        self._asked[made] = number

    def note(self) -> None:
        """Note an event."""
        self.num_events += 1
        if not self._asked:
            return
        asked, self._asked = self._asked, {}
        self.ever = {**asked, **self.ever}
        self.always = [
            made for made in (asked if self.always is None else self.always) if made in asked
        ]
        self.num_after_batches += 1


class Look:
    """Watches loaders, optimizers and gradients until it is clear which loader is the training's.

    Args:
        optimizer_exists: Whether there is an optimizer of torch that has yet to take a step.
    """

    def __init__(self, optimizer_exists: Callable[[], bool]) -> None:
        self._optimizer_exists = optimizer_exists
        self._num_made: collections.Counter[tuple[str, ...]] = collections.Counter()
        self._num_passes: collections.Counter[Made] = collections.Counter()
        self._steps, self._gradients = _Followed(), _Followed()
        self._first_batch_s: float | None = None
        self._first_asked: Made | None = None

    def make(self, place: Place) -> Made:
        """Note a DataLoader that was made."""
        self._num_made[place.calls] += 1
        return Made(place, self._num_made[place.calls] - 1)

    def begin_pass(self, made: Made) -> None:
        """Note that a DataLoader is iterated."""
        self._num_passes[made] += 1

    def give_batch(self, made: Made) -> Answer | None:
        """Note a batch; gives an answer where none led to an optimizer step for too long."""
        now_s = time.monotonic()
        for followed in (self._steps, self._gradients):
            followed.give_batch(made, self._num_passes[made] - 1)
        self._first_asked = self._first_asked or made
        self._first_batch_s = self._first_batch_s or now_s
        if not self._steps.num_events and now_s - self._first_batch_s > _PATIENCE_S:
            return self.conclude()
        return None

    def step(self) -> Answer | None:
        """Note an optimizer step; gives an answer as soon as there is one."""
        self._steps.note()
        enough = self._steps.num_after_batches >= _ENOUGH_STEPS
        without = not self._num_passes and self._steps.num_events >= _STEPS_WITHOUT
        return self.conclude() if enough or without else None

    def gradient(self) -> Answer | None:
        """Note that gradients were computed; gives an answer where nothing else is to come."""
        self._gradients.note()
        # Not each time: to look for an optimizer takes long.
        many = self._gradients.num_events % _STEPS_WITHOUT == 0
        if self._steps.num_events or not many or self._optimizer_exists():
            return None
        return self.conclude()

    def conclude(self) -> Answer:
        """What is known by now."""
        has_optimizer = self._steps.num_events > 0
        followed = self._steps if has_optimizer else self._gradients
        if not followed.num_events and self._first_asked is not None:
            label = self._first_asked.place.label
            return _refused(f"nothing was learned from batches of the DataLoader made at {label}")
        if not followed.ever:
            if self._num_made:
                return _refused("the script makes a DataLoader and takes no batch from it")
            return _refused("the script takes its batches from no DataLoader")
        found = followed.always or []
        if len(found) != 1:
            labels = ", ".join(sorted({made.place.label for made in found or followed.ever}))
            what = "each step takes from" if found else "its steps take in turn from"
            return _refused(f"{what} several DataLoaders (made at {labels})")
        [made] = found
        if not made.place.calls:
            return _refused("the DataLoader is made by a library, and cannot be told from others")
        num_made = self._num_made[made.place.calls]
        return Answer(
            target=PatchTarget(
                place=made.place.label,
                calls=made.place.calls,
                ordinal=made.ordinal if num_made > 1 else None,
                num_made=num_made,
                first_pass=followed.ever[made],
                has_optimizer=has_optimizer,
            )
        )


def _refused(problem: str) -> Answer:
    return Answer(problem=f"{problem}: put the two calls into the loop (see docs/your_loop.md)")
