"""Which of a script's loaders feeds the training, told from batches and optimizer steps."""

import dataclasses
import json
import linecache
import sys

import pytest

from autotune.patch import look as module
from autotune.patch.look import Answer, Look, answer_in
from autotune.patch.places import Place, place_of

TRAIN, TEST = (
    Place(label=f"train.py:{line}", calls=(f"train.py, main: {name} = DataLoader(",))
    for line, name in ((10, "train"), (11, "test"))
)


def seen(events, *, has_optimizer=False):
    """What a look says after events: batches of loaders by name, "step"; None after the last one.

    The loaders are made in the order in which they are named first.
    """
    look, made = Look(lambda: has_optimizer), {}
    places = {"train": TRAIN, "test": TEST, "same": TRAIN, "library": Place(label="", calls=())}
    for event in events.split():
        if event == "step":
            answer = look.step()
        elif event == "gradient":
            answer = look.gradient()
        else:
            name, begins = event.removeprefix("+"), event.startswith("+")
            if name not in made:
                made[name] = look.make(places[name])
                look.begin_pass(made[name])
            elif begins:
                look.begin_pass(made[name])
            answer = look.give_batch(made[name])
        if answer is not None:
            return answer
    return look.conclude()


@pytest.mark.parametrize(
    "events",
    [
        "train step train step train step",
        # Of an evaluation before, between and after.
        "test test train step train step train step",
        "train step test test train step train step",
        "test train step test train step train step",
        # Accumulation, and several optimizers.
        "train train step train train step train step",
        "train step step train step step train step step",
        # The script ends before much is seen.
        "train step",
        "test train step train step",
        "train gradient step train gradient step train gradient step",
        # Steps on batches of another kind, before.
        "step step train step train step train step",
    ],
)
def test_the_training_takes_from_the_loader_that_steps_follow(events):
    target = seen(events).target
    assert target is not None
    assert target.place == "train.py:10"
    assert target.calls == TRAIN.calls
    assert target.ordinal is None
    assert target.first_pass == 0


def test_loaders_that_the_same_calls_make_are_told_apart_by_their_order():
    target = seen("same train step train step train step").target
    assert (target.ordinal, target.num_made) == (1, 2)
    assert seen("train same train step train step train step").target.ordinal == 0


def test_passes_before_the_training_are_counted():
    assert seen("train +train train +train train step train step train step").target.first_pass == 2


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ("train test step train test step train test step", r"each step takes from several .*10, "),
        ("train step test step train step", "its steps take in turn from several"),
        ("step " * 20, "takes its batches from no DataLoader"),
        ("step", "takes its batches from no DataLoader"),
        ("gradient " * 20, "takes its batches from no DataLoader"),
        ("train train", "nothing was learned from batches of the DataLoader made at .*:10"),
        ("", "takes its batches from no DataLoader"),
        ("library step", "made by a library"),
    ],
)
def test_what_cannot_be_told_is_said_with_what_to_do(events, problem):
    answer = seen(events)
    assert answer.target is None
    with pytest.raises(AssertionError, match=f"{problem}.*: put the two calls into the loop"):
        raise AssertionError(answer.problem)


def test_a_loader_without_steps_is_not_watched_for_ever(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    assert "nothing was learned" in seen("train train train").problem


def test_where_no_optimizer_is_of_torch_gradients_tell_the_training():
    events = "test " + "train gradient " * 25
    target = seen(events).target
    assert target.place == "train.py:10"
    assert not target.has_optimizer
    assert seen("train gradient train gradient").target == target
    # One that has yet to take its first step is waited for.
    assert seen(events + "train step " * 3, has_optimizer=True).target.has_optimizer


def test_a_loader_that_was_made_and_not_used_is_told():
    look = Look(lambda: False)
    look.make(TRAIN)
    assert "makes a DataLoader and takes no batch from it" in look.conclude().problem


def test_an_answer_survives_its_message():
    answer = seen("same train step")
    message = json.loads(json.dumps({"type": "look", **dataclasses.asdict(answer)}))
    assert answer_in(message) == answer
    assert answer_in({"type": "hello"}) == Answer(
        problem="it calls autotune.load_config by itself: run it without --patch"
    )


SOURCE = """
def make():
    return here()

def train():
    return make()

def test():
    return make()
"""


def test_a_place_is_the_calls_of_ones_own_code(tmp_path):
    def run(path, source):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        linecache.checkcache()
        names = {"here": lambda: place_of(sys._getframe(1))}
        exec(compile(source, str(path), "exec"), names)
        return names

    names = run(tmp_path / "own.py", SOURCE)
    train, test = names["train"](), names["test"]()
    assert train.label == "own.py:3"
    assert train.calls[:2] == ("own.py, make: return here()", "own.py, train: return make()")
    assert train.calls != test.calls
    # Lines that are added elsewhere do not change it, the label apart.
    moved = run(tmp_path / "own.py", "import math\n" + SOURCE)["train"]()
    assert moved.label == "own.py:4"
    assert moved.calls[:2] == train.calls[:2]
    # Of a library, it is who called the library.
    library = run(tmp_path / "site-packages" / "factory.py", SOURCE)
    assert not any(call.startswith("factory.py") for call in library["train"]().calls)
