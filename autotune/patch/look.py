"""The first look at an untouched script: which of its loaders feeds the training."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from autotune.patch.places import Place
from autotune.patch_target import PatchTarget, target_of

# So many optimizer steps tell the training's loader from one that an evaluation between them reads.
_ENOUGH_STEPS = 3
# A script that takes so many steps without a DataLoader has none, and one whose loader gives
# batches for so long without a step has no optimizer of torch.
_STEPS_WITHOUT_LOADER = 20
_PATIENCE_S = 30.0
_USE_CALLS = "put the two calls into the loop (see docs/your_loop.md)"


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A DataLoader, by the calls that made it, and how many these had made before."""

    place: Place
    ordinal: int


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What was found: a target, or the reason why there is none."""

    target: PatchTarget | None = None
    problem: str | None = None


def answer_in(message: Mapping[str, Any]) -> Answer:
    """The answer that a process gave; one that called `load_config` has introduced itself."""
    if message.get("type") != "look":
        return Answer(problem="it calls autotune.load_config by itself: run it without --patch")
    target = message["target"]
    return Answer(target=target and target_of(target), problem=message["problem"])


class Look:
    """Watches loaders and optimizers until it is clear which loader is the training's."""

    def __init__(self) -> None:
        self._num_made: dict[tuple[str, ...], int] = {}
        self._num_passes: collections.Counter[Made] = collections.Counter()
        # The pass during which a loader was first followed by an optimizer step.
        self._first_pass: dict[Made, int] = {}
        self._asked: dict[Made, None] = {}
        self._followed: list[Made] | None = None
        self._num_steps = self._num_followed = 0
        self._first_batch_s: float | None = None
        self._first_asked: Made | None = None

    def make(self, place: Place) -> Made:
        """Note a DataLoader that was made."""
        ordinal = self._num_made.get(place.calls, 0)
        self._num_made[place.calls] = ordinal + 1
        return Made(place, ordinal)

    def begin_pass(self, made: Made) -> None:
        """Note that a DataLoader is iterated."""
        self._num_passes[made] += 1

    def give_batch(self, made: Made) -> Answer | None:
        """Note a batch; gives an answer where no optimizer step came for too long."""
        now_s = time.monotonic()
        self._asked[made] = None
        self._first_asked = self._first_asked or made
        self._first_batch_s = self._first_batch_s or now_s
        if not self._num_steps and now_s - self._first_batch_s > _PATIENCE_S:
            return self.conclude()
        return None

    def step(self) -> Answer | None:
        """Note an optimizer step; gives an answer as soon as there is one."""
        self._num_steps += 1
        if self._asked:
            asked, self._asked = list(self._asked), {}
            for made in asked:
                self._first_pass.setdefault(made, self._num_passes[made] - 1)
            before = asked if self._followed is None else self._followed
            self._followed = [made for made in before if made in asked]
            self._num_followed += 1
        enough = self._num_followed >= _ENOUGH_STEPS
        without = not self._num_followed and self._num_steps >= _STEPS_WITHOUT_LOADER
        return self.conclude() if enough or without else None

    def conclude(self) -> Answer:
        """What is known by now."""
        if not self._num_steps:
            return Answer(problem=self._without_steps())
        if not self._first_pass:
            return Answer(problem="the script takes its batches from no DataLoader: " + _USE_CALLS)
        found = self._followed or []
        if len(found) != 1:
            labels = ", ".join(sorted({made.place.label for made in found or self._first_pass}))
            what = "each step takes from" if found else "its steps take in turn from"
            return Answer(problem=f"{what} several DataLoaders (made at {labels}): {_USE_CALLS}")
        [made] = found
        if not made.place.calls:
            return Answer(
                problem="the DataLoader is made by a library, and cannot be told from others: "
                + _USE_CALLS
            )
        several = self._num_made[made.place.calls] > 1
        return Answer(
            target=PatchTarget(
                place=made.place.label,
                calls=made.place.calls,
                ordinal=made.ordinal if several else None,
                first_pass=self._first_pass[made],
            )
        )

    def _without_steps(self) -> str:
        if self._first_asked is None:
            made = "makes a DataLoader and takes no batch from it" if self._num_made else ""
            return f"the script {made or 'makes no DataLoader'}: {_USE_CALLS}"
        return (
            f"no optimizer of torch took a step while the DataLoader made at "
            f"{self._first_asked.place.label} gave batches: {_USE_CALLS}"
        )
