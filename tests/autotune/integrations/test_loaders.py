"""A loader that was made elsewhere is made again with other settings, and is otherwise the same."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from autotune import ThroughputConfig
from autotune.errors import ConfigError
from autotune.instrument.swap import swap_settings
from autotune.integrations.loaders import rebuilt, settings_of

NUMBERS = TensorDataset(torch.arange(10.0))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(10.0))


def as_sum(samples):
    return sum(sample[0] for sample in samples)


def batches(loader):
    torch.manual_seed(1)
    return [batch[0].tolist() if isinstance(batch, list) else batch.tolist() for batch in loader]


def test_settings_are_those_that_the_loader_was_made_with():
    loader = DataLoader(NUMBERS, batch_size=4, num_workers=2, prefetch_factor=3)
    assert settings_of(loader) == ThroughputConfig(
        batch_size=4, num_workers=2, prefetch_factor=3, persistent_workers=False
    )


def test_with_its_own_settings_it_is_the_loader_itself():
    loader = DataLoader(NUMBERS, batch_size=4)
    config = ThroughputConfig(batch_size=4, gradient_accumulation_steps=2)
    assert rebuilt(loader, config) is loader


def method(loader):
    context = loader.multiprocessing_context
    return None if context is None else context.get_start_method()


def test_how_workers_are_started_and_read_is_changed_where_a_setting_says_so():
    own = {"num_workers": 2, "in_order": False, "multiprocessing_context": "spawn"}
    loader = DataLoader(NUMBERS, batch_size=4, **own)
    config = settings_of(loader)
    assert (config.in_order, config.multiprocessing_context) == (False, "spawn")
    assert rebuilt(loader, config) is loader
    other = ThroughputConfig(batch_size=4, num_workers=1, multiprocessing_context="forkserver")
    made = rebuilt(loader, other)
    assert (made.in_order, method(made)) == (True, "forkserver")
    swap_settings(loader, other)
    assert (loader.in_order, method(loader)) == (True, "forkserver")
    swap_settings(loader, ThroughputConfig(batch_size=4))
    assert [batch.tolist() for [batch] in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_way_to_start_workers_of_the_scripts_own_is_kept_where_no_setting_names_another():
    own = torch.multiprocessing.get_context("spawn")
    loader = DataLoader(NUMBERS, batch_size=4, num_workers=2, multiprocessing_context=own)
    plain = ThroughputConfig(batch_size=4, num_workers=1)
    assert rebuilt(loader, plain).multiprocessing_context is own
    swap_settings(loader, plain)
    assert loader.multiprocessing_context is own
    assert not rebuilt(loader, ThroughputConfig(batch_size=4)).num_workers


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_samples_come_in_the_same_order(shuffle, drop_last, num_workers):
    loader = DataLoader(NUMBERS, batch_size=4, shuffle=shuffle, drop_last=drop_last)
    made = rebuilt(loader, ThroughputConfig(batch_size=2, num_workers=num_workers))
    assert made.num_workers == num_workers
    expected = [number for batch in batches(loader) for number in batch]
    assert [number for batch in batches(made) for number in batch][: len(expected)] == expected
    assert {len(batch) for batch in batches(made)} == {2}


def test_what_else_it_was_made_with_is_kept():
    generator = torch.Generator().manual_seed(3)
    sampler = RandomSampler(NUMBERS, replacement=True, num_samples=6, generator=generator)
    loader = DataLoader(
        NUMBERS, batch_size=2, sampler=sampler, collate_fn=as_sum, worker_init_fn=print
    )
    made = rebuilt(loader, ThroughputConfig(batch_size=3, num_workers=1))
    assert made.sampler is sampler
    assert made.collate_fn is as_sum
    assert made.worker_init_fn is print
    assert len(made) == 2


@pytest.mark.parametrize("batch_size", [2, None])
def test_an_iterable_dataset_keeps_its_order(batch_size):
    made = rebuilt(DataLoader(Stream(), batch_size=batch_size), ThroughputConfig(batch_size=5))
    assert torch.cat([torch.atleast_1d(batch) for batch in made]).tolist() == list(range(10))
    assert made.batch_size == (batch_size and 5)


def test_a_batch_sampler_of_its_own_is_kept():
    batch_sampler = BatchSampler(RandomSampler(NUMBERS), 3, drop_last=True)
    loader = DataLoader(NUMBERS, batch_sampler=batch_sampler)
    assert settings_of(loader).batch_size == 3
    made = rebuilt(loader, ThroughputConfig(batch_size=6, num_workers=1))
    assert made.batch_sampler is batch_sampler
    assert made.num_workers == 1


def test_a_loader_of_another_kind_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"one torch.utils.data.DataLoader, not from list: call"):
        settings_of([1, 2])

    class Own(DataLoader):
        def __init__(self, size):
            super().__init__(NUMBERS, batch_size=size)

    with pytest.raises(ConfigError, match="Own cannot be made again .* call autotune.load_config"):
        rebuilt(Own(2), ThroughputConfig(batch_size=5))
