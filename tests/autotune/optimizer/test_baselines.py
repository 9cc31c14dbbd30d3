import math

import pytest

from autotune.config import ThroughputConfig
from autotune.optimizer.baselines import make_proposer
from autotune.space import Space
from autotune.study.definition import SamplerName

BASELINE = ThroughputConfig(batch_size=2, num_threads=1)
SPACE = Space(
    axes={
        "batch_size": (2, 4, 8),
        "num_workers": (0, 1, 2),
        "prefetch_factor": (2, 4),
        "num_threads": (1, 2),
        "pin_memory": (False, True),
        "gc": ("default", "frozen", "raised"),
    }
)
CONFIGS = SPACE.configurations(BASELINE)


def unbounded(_):
    return math.inf


@pytest.mark.parametrize("name", [SamplerName.GRID, SamplerName.RANDOM, SamplerName.TPE])
def test_every_configuration_is_proposed_once(name):
    proposer = make_proposer(name, SPACE.axes, seed=1)
    measured = {}
    # Some of them: what Optuna's take grows with the square of what is known.
    left_over = CONFIGS[::4]
    while len(measured) < len(left_over):
        candidates = [config for config in left_over if config not in measured]
        chosen = proposer.propose(candidates, measured, unbounded)
        assert chosen in candidates
        measured[chosen] = float(chosen.batch_size)


def test_the_gaussian_process_proposes_what_is_there():
    proposer = make_proposer(SamplerName.GP, SPACE.axes, seed=1)
    measured = {}
    for _ in range(12):
        candidates = [config for config in CONFIGS if config not in measured]
        chosen = proposer.propose(candidates, measured, unbounded)
        measured[chosen] = float(chosen.batch_size)
    assert len(measured) == 12


def test_what_needs_workers_is_proposed_with_these_alone():
    axes = {
        "num_workers": (0, 1),
        "in_order": (False, True),
        "multiprocessing_context": ("fork", "spawn"),
    }
    configs = Space(axes=axes).configurations(BASELINE)
    proposer = make_proposer(SamplerName.TPE, Space(axes=axes).axes, seed=1)
    measured = {}
    while len(measured) < len(configs):
        left_over = [config for config in configs if config not in measured]
        measured[proposer.propose(left_over, measured, unbounded)] = 1.0
    assert len(measured) == 1 + 4


def test_configurations_off_the_axes_do_no_harm():
    proposer = make_proposer(SamplerName.TPE, SPACE.axes, seed=1)
    odd = ThroughputConfig(batch_size=3, num_threads=7)
    assert proposer.propose(CONFIGS, {odd: 5.0}, unbounded) in CONFIGS


def test_the_grid_visits_configurations_without_workers_first_then_by_bound():
    proposer = make_proposer(SamplerName.GRID, SPACE.axes, seed=1)
    assert proposer.propose(CONFIGS, {}, unbounded).num_workers == 0
    with_workers = [config for config in CONFIGS if config.num_workers]
    chosen = proposer.propose(with_workers, {}, lambda config: float(config.batch_size))
    assert (chosen.batch_size, chosen.num_workers, chosen.prefetch_factor) == (8, 1, 2)
