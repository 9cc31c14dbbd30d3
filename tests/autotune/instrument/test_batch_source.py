"""The batches of a loader, taken in this process: real loaders and real workers."""

import itertools
import multiprocessing
import queue
import threading

import psutil
import pytest
import torch

from autotune.config import ThroughputConfig
from autotune.instrument import torch_loader
from autotune.instrument.batch_source import END, BatchSource

from ..conftest import wait_until

WITH_WORKERS = ThroughputConfig(batch_size=2, num_workers=2, prefetch_factor=3)
torch_loader.install()


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index


class Stream(torch.utils.data.IterableDataset):
    """Ten numbers, each worker its own share."""

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        return iter(range(worker.id, 10, worker.num_workers) if worker else range(10))


class Ahead:
    """A wrapper that hides torch's iterator, and takes one batch ahead, as Accelerate's does."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        batches = iter(self.loader)
        current = next(batches)
        for following in batches:
            yield current
            current = following
        yield current


class Threaded:
    """A wrapper whose thread reads ahead into a queue of its own."""

    def __init__(self, num_batches, capacity):
        self.num_batches, self.capacity = num_batches, capacity

    def __iter__(self):
        ready = queue.Queue(self.capacity)

        def read():
            for number in range(self.num_batches):
                ready.put(number)

        threading.Thread(target=read, daemon=True).start()
        for _ in range(self.num_batches):
            yield ready.get()


@pytest.fixture
def loader():
    return WITH_WORKERS.dataloader(Numbers())


def worker_states():
    return {
        psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
        for child in multiprocessing.active_children()
    }


def test_batches_begin_again_where_an_epoch_ends(loader):
    source = BatchSource(loader)
    taken = [source.take().tolist() for _ in range(45)]
    assert taken[:20] == taken[20:40] == [[2 * n, 2 * n + 1] for n in range(20)]
    assert (source.num_taken, source.num_epoch_ends) == (45, 2)
    assert source.epoch_end_s > 0


def test_a_pass_of_the_script_itself_ends_where_its_epoch_ends(loader):
    source = BatchSource(loader)
    taken = list(iter(source.take_once, END))
    assert len(taken) == 20
    assert source.num_epoch_ends == 0


def test_a_batch_that_was_looked_at_is_taken_next(loader):
    source = BatchSource(loader)
    assert source.peek().tolist() == source.peek().tolist() == [0, 1]
    assert [source.take().tolist() for _ in range(2)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("wrap", [lambda loader: loader, Ahead])
def test_batches_that_workers_have_finished_are_counted_and_thrown_away(loader, wrap):
    source = BatchSource(wrap(loader))
    first = source.take()
    assert first.tolist() == [0, 1]
    assert wait_until(lambda: source.num_ready() == 6)
    assert source.discard_ready() == 6
    assert source.take().tolist() == [14, 15]


@pytest.mark.parametrize("wrap", [lambda loader: loader, Ahead])
def test_workers_stand_still_while_batches_are_held_and_run_on_afterwards(loader, wrap):
    source = BatchSource(wrap(loader))
    with source.held():
        assert wait_until(lambda: worker_states() == {True})
        first = [source.take().tolist() for _ in range(4)]
        assert sorted(first) == [[0, 1], [2, 3], [4, 5], [6, 7]]
        assert [source.take().tolist() for _ in range(4)] == first
    assert wait_until(lambda: worker_states() == {False})
    assert source.take().tolist() == [8, 9]


def test_workers_run_on_where_the_step_fails_while_batches_are_held(loader):
    with pytest.raises(ValueError, match="bad news"), BatchSource(loader).held():
        assert wait_until(lambda: worker_states() == {True})
        raise ValueError("bad news")
    assert wait_until(lambda: worker_states() == {False})


def test_a_new_epoch_begins_from_the_start(loader):
    source = BatchSource(loader)
    for _ in range(5):
        source.take()
    assert source.begin_epoch(6, limit_s=5.0) > 0
    # Its first batch was the one that was waited for.
    assert source.take().tolist() == [2, 3]
    assert source.num_epoch_ends == 0


def test_loaders_of_other_makes_have_nothing_ready():
    source = BatchSource([[1], [2]])
    assert source.num_ready() == source.discard_ready() == 0
    assert source.take() == [1]
    assert source.begin_epoch(0, limit_s=5.0) > 0


def test_data_without_end_has_no_further_epoch():
    assert BatchSource(itertools.repeat([1])).begin_epoch(0, limit_s=5.0) is None


@pytest.mark.parametrize(("loader", "num_batches"), [([], 0), (iter([[1], [2]]), 2)])
def test_data_that_ends_for_good_says_so(loader, num_batches):
    source = BatchSource(loader)
    for _ in range(num_batches):
        source.take()
    assert source.take() is END


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("wrap", [lambda loader: loader, Ahead])
def test_the_samples_of_each_batch_are_those_that_the_sampler_drew(num_workers, wrap):
    def collate(samples):
        return torch.tensor([samples])

    loader = torch.utils.data.DataLoader(
        Numbers(),
        batch_sampler=[[0, 1, 2], [3], [4, 5]],
        num_workers=num_workers,
        collate_fn=collate,
    )
    source = BatchSource(wrap(loader))
    counts = []
    for _ in range(6):
        assert source.take().shape[1] == source.num_samples
        counts.append(source.num_samples)
    assert counts == [3, 1, 2] * 2


@pytest.mark.parametrize(("num_workers", "counts"), [(0, [4, 4, 2]), (2, [4, 4, 1, 1])])
@pytest.mark.parametrize("wrap", [lambda loader: loader, Ahead])
@pytest.mark.parametrize(
    "collate", [torch.tensor, lambda samples: {"ids": torch.ones(7, len(samples)), "kind": "x"}]
)
def test_any_batch_of_an_iterable_dataset_may_be_partial(num_workers, counts, wrap, collate):
    loader = torch.utils.data.DataLoader(
        Stream(), batch_size=4, num_workers=num_workers, collate_fn=collate
    )
    source = BatchSource(wrap(loader))
    for count in counts * 2:
        batch = source.take()
        found = batch if isinstance(batch, torch.Tensor) else batch["ids"]
        assert (found.shape[-1], source.num_samples) == (count, count)


def test_batches_that_bring_their_number_of_samples_are_pinned_as_others():
    class Own:
        def pin_memory(self):
            return "pinned"

    counted = torch_loader._collate_counted(lambda samples: Own(), [1, 2, 3])
    pinned = torch.utils.data._utils.pin_memory.pin_memory(counted)
    assert (pinned.num_samples, pinned.batch) == (3, "pinned")


def test_what_an_iterable_dataset_batches_itself_is_not_counted():
    source = BatchSource(torch.utils.data.DataLoader(Stream(), batch_size=None))
    assert source.take() == 0
    assert source.num_samples is None


def test_what_a_thread_has_read_ahead_is_thrown_away():
    source = BatchSource(Threaded(10**9, capacity=5000))
    source.take()
    assert source.drain() >= 5000


def test_nothing_is_thrown_away_where_no_buffer_is_hidden(loader):
    source = BatchSource(loader)
    source.take()
    assert source.drain() == 0
