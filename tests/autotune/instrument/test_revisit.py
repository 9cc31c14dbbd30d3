"""Samples that are loaded twice: real datasets, in this process."""

import functools
import time

import pytest
import torch

from autotune.config import ThroughputConfig
from autotune.instrument import torch_loader
from autotune.instrument.batch_source import BatchSource
from autotune.instrument.revisit import preload, revisit

torch_loader.install()


class Slow(torch.utils.data.Dataset):
    """Samples that take 5 ms."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        time.sleep(0.005)
        return torch.tensor(index)


class Keeping(Slow):
    def __init__(self):
        self.kept = {}

    def __getitem__(self, index):
        if index not in self.kept:
            self.kept[index] = super().__getitem__(index)
        return self.kept[index]


class Remembering(Slow):
    @functools.cache  # noqa: B019
    def __getitem__(self, index):
        return super().__getitem__(index)


class Filing(Slow):
    """Writes what it has made to a file, and reads it from there."""

    def __init__(self, directory):
        self.directory = directory

    def __getitem__(self, index):
        path = self.directory / f"{index}.pt"
        if not path.exists():
            torch.save(super().__getitem__(index), path)
        return torch.load(path)


class Broken(Slow):
    def __getitem__(self, index):
        raise ValueError("bad news")


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(10))


def loader_of(dataset, num_workers=0):
    return ThroughputConfig(batch_size=4, num_workers=num_workers).dataloader(dataset)


@pytest.mark.parametrize("make", [Keeping, Remembering])
def test_a_dataset_that_keeps_what_it_loaded_is_found(make):
    found = revisit(loader_of(make()))
    assert found.is_faster
    assert found.is_kept
    assert found.first_s >= 0.005 > found.again_s


def test_a_dataset_that_keeps_files_is_found(tmp_path):
    found = revisit(loader_of(Filing(tmp_path)))
    assert found.is_faster
    assert found.again_read_bytes > 0


def test_a_dataset_that_loads_anew_is_not_taken_for_one():
    found = revisit(loader_of(Slow()))
    assert not found.is_faster
    assert not found.is_kept


@pytest.mark.parametrize("dataset", [Broken(), Stream()])
def test_what_cannot_be_asked_for_samples_is_left_alone(dataset):
    assert revisit(loader_of(dataset)) is None
    assert revisit([[1], [2]]) is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_batches_are_drawn_from_the_samples_that_were_loaded(num_workers):
    dataset = Keeping()
    indices = preload(dataset, 5)
    torch_loader.repeat_samples(dataset, indices)
    source = BatchSource(loader_of(dataset, num_workers))
    drawn = {int(index) for _ in range(30) for index in source.take()}
    assert drawn == set(indices)
    assert source.num_samples == 4
