"""How many samples a batch holds, whatever it looks like."""

import pytest
import torch

from autotune.instrument.sample_count import SampleCounter


def counted(first, *batches, batch_size=16, is_certain=False):
    """What each batch counts as, once the first one was looked at."""
    counter = SampleCounter(batch_size, is_certain=is_certain)
    counter.learn(first)
    assert counter.knows
    return [counter.count(batch) for batch in (first, *batches)]


def zeros(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: zeros(n, 3),
        lambda n: [zeros(n, 3), zeros(n)],
        lambda n: {"x": (zeros(n),), "scale": 2.0},
        # Time first; a tuple of images; boxes whose number is not that of the images.
        lambda n: zeros(35, n),
        lambda n: tuple(zeros(3, 4) for _ in range(n)),
        lambda n: {"images": zeros(n, 3, 8, 8), "boxes": zeros(5 * n + 1, 4)},
        lambda n: {"text": ["a"] * n, "labels": zeros(n)},
        lambda n: [0.0] * n,
    ],
)
def test_full_and_partial_batches_are_counted(make):
    assert counted(make(16), make(16), make(5)) == [16, 16, 5]


def test_a_length_that_is_the_batch_size_by_chance_is_found_out():
    counter = SampleCounter(16, is_certain=False)
    counter.learn([zeros(16, 16), zeros(40, 2)])
    counter.learn([zeros(16, 12), zeros(16, 2)])
    assert counter.count([zeros(7, 12), zeros(16, 2)]) == 7


def test_batches_that_the_loader_makes_by_itself_are_counted_as_they_come():
    counter = SampleCounter(16, is_certain=False)
    counter.learn([zeros(64, 3), zeros(64)])
    assert counter.own_batch_size == 64
    assert counter.count([zeros(10, 3), zeros(10)]) == 10


def test_batches_of_a_dataset_count_what_their_tensors_agree_on_though_an_axis_holds_one():
    made = {"x": zeros(30, 16), "y": zeros(30, 1), "id": "chunk"}
    counter = SampleCounter(1, is_certain=False, counts_batches=True)
    counter.learn(made)
    assert [counter.count(made), counter.count({"x": zeros(7, 16), "y": zeros(7, 1)})] == [30, 7]
    # A batch of one, time first.
    assert counted(zeros(35, 1, 4), batch_size=1) == [1]
    unknown = SampleCounter(1, is_certain=False, counts_batches=True)
    unknown.learn([zeros(5, 1), zeros(9, 1)])
    assert unknown.count([zeros(5, 1), zeros(9, 1)]) == 1


@pytest.mark.parametrize("batch", [zeros(1, 345), [zeros(3), zeros(5)], None, "text", 3])
def test_what_cannot_be_told_is_not_guessed(batch):
    counter = SampleCounter(16, is_certain=False)
    counter.learn(batch)
    assert not counter.knows


def test_torch_batches_hold_what_they_were_asked_to_hold():
    assert counted(zeros(1, 345), zeros(1, 317), is_certain=True) == [16, 16]
