"""The batches of a loader, taken in this process: real loaders and real workers."""

import itertools
import multiprocessing

import psutil
import pytest
import torch

from autotune.batches import Batches
from autotune.config import ThroughputConfig
from autotune.measurement import FailureCause

from .conftest import wait_until

WITH_WORKERS = ThroughputConfig(batch_size=2, num_workers=2, prefetch_factor=3)


class Ended(Exception):
    pass


class FakeTrial:
    """A trial process without a coordinator."""

    def __init__(self, config):
        self.config = config

    def end(self, cause, message):
        self.cause = cause
        raise Ended(message)


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index


@pytest.fixture
def loader():
    return WITH_WORKERS.dataloader(Numbers())


def batches_of(loader, config=WITH_WORKERS):
    return Batches(FakeTrial(config), loader)


def worker_states():
    return {
        psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
        for child in multiprocessing.active_children()
    }


def test_batches_begin_again_where_an_epoch_ends(loader):
    batches = batches_of(loader)
    assert batches.steps_per_epoch == 20
    taken = [batches.take().tolist() for _ in range(45)]
    assert taken[:20] == taken[20:40] == [[2 * n, 2 * n + 1] for n in range(20)]
    assert (batches.num_taken, batches.num_epoch_ends) == (45, 2)
    assert batches.epoch_end_s > 0


def test_batches_that_workers_have_finished_are_counted_and_thrown_away(loader):
    batches = batches_of(loader)
    batches.take()
    assert wait_until(lambda: batches.num_ready() == 6)
    assert batches.discard_ready() == 6
    assert batches.num_taken == 7
    assert batches.take().tolist() == [14, 15]


def test_workers_stand_still_while_batches_are_held_and_run_on_afterwards(loader):
    batches = batches_of(loader)
    with batches.held() as held:
        assert wait_until(lambda: worker_states() == {True})
        first = [next(held).tolist() for _ in range(4)]
        assert first == [[0, 1], [2, 3], [4, 5], [6, 7]]
        assert [next(held).tolist() for _ in range(4)] == first
    assert wait_until(lambda: worker_states() == {False})
    assert batches.take().tolist() == [8, 9]


def test_workers_run_on_where_the_step_fails_while_batches_are_held(loader):
    with pytest.raises(ValueError, match="bad news"), batches_of(loader).held():
        assert wait_until(lambda: worker_states() == {True})
        raise ValueError("bad news")
    assert wait_until(lambda: worker_states() == {False})


def test_a_new_epoch_begins_from_the_start(loader):
    batches = batches_of(loader)
    for _ in range(5):
        batches.take()
    assert batches.begin_epoch(limit_s=5.0) > 0
    # Its first batch was the one that was waited for.
    assert batches.take().tolist() == [2, 3]
    assert batches.num_epoch_ends == 0


def test_loaders_of_other_makes_have_nothing_ready():
    batches = batches_of([[1], [2]], ThroughputConfig(batch_size=1))
    assert batches.num_ready() == batches.discard_ready() == 0
    assert batches.take() == [1]
    assert batches.begin_epoch(limit_s=5.0) > 0


def test_data_without_end_has_no_length():
    batches = batches_of(itertools.repeat([1]), ThroughputConfig(batch_size=1))
    assert batches.steps_per_epoch is None
    assert batches.begin_epoch(limit_s=5.0) is None


@pytest.mark.parametrize(
    ("loader", "num_batches", "cause"),
    [([], 0, FailureCause.NO_DATA), (iter([[1], [2]]), 2, FailureCause.LOOP_ENDED)],
)
def test_data_that_ends_for_good_ends_the_trial(loader, num_batches, cause):
    batches = batches_of(loader, ThroughputConfig(batch_size=1))
    for _ in range(num_batches):
        batches.take()
    with pytest.raises(Ended):
        batches.take()
    assert batches._trial.cause is cause
