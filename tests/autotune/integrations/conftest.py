"""Trainings within the process of the tests: with a settings file, and as if in a trial."""

import dataclasses
from pathlib import Path

import pytest
import torch
import wrapt

import autotune
from autotune import ThroughputConfig
from autotune.best_config import write_best_config

from ..test_best_config import make_best


class EnoughError(Exception):
    """A trial was given as many batches as it needs."""


class Endless(wrapt.ObjectProxy):
    """A loader as a trial has it: begun again when it ends, until enough batches were taken."""

    def __init__(self, loader, taken, limit):
        super().__init__(loader)
        self._self_taken = taken
        self._self_limit = limit

    def __iter__(self):
        while True:
            for batch in self.__wrapped__:
                if len(self._self_taken) == self._self_limit:
                    raise EnoughError
                self._self_taken.append(batch)
                yield batch


@pytest.fixture(autouse=True)
def _quiet_place(tmp_path, monkeypatch):
    """A directory of its own, and one thread: several wait for each other where cores are busy."""
    monkeypatch.chdir(tmp_path)
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture
def trial(monkeypatch):
    """Makes this process a trial of other settings that ends after so many batches.

    Gives the batches that were taken, and the function that counts the units in each.
    """

    def become(limit, **changes):
        seen = {"batches": [], "units": None, "loaders": 0}

        def load_config(path, *, default, effective_batch_size=None):
            config = dataclasses.replace(default, **changes)
            return config.with_effective_batch_size(effective_batch_size)

        def steps(loader, *, units=None):
            seen["units"] = units
            seen["loaders"] += 1
            return Endless(loader, seen["batches"], limit)

        monkeypatch.setattr(autotune, "is_trial", lambda: True)
        monkeypatch.setattr(autotune, "load_config", load_config)
        monkeypatch.setattr(autotune, "steps", steps)
        return seen

    return become


def write_settings(**values):
    """Write a settings file, as a run does."""
    best = dataclasses.replace(make_best(), config=ThroughputConfig(**values))
    write_best_config(Path("best_config.yaml"), best)


def tree():
    """All that is in the working directory, but for what a run itself writes."""
    own = ("studies", "study.yaml", "best_config.yaml")
    return sorted(str(path) for path in Path().rglob("*") if path.parts[0] not in own)
