"""How long a trial is measured: briefly in the search, longer where it decides.

Samples that other processes disturbed are kept, and measured again within a bound.
"""

from __future__ import annotations

import math
import time

from autotune.measurement import Block, Sample, summarise
from autotune.search.definition import StudyDefinition
from autotune.search.storage import Outcome
from autotune.trials.trial import BlockRequest, Trial

# The first steps pay for lazy initialisation, caches for new shapes and a growing allocator.
WARM_UP = BlockRequest(min_s=0.1, min_steps=2)
# A visit goes on while its rate is at least this share of the best one so far.
_KEEPS_UP = 0.9
# At most so many disturbed samples of a trial are measured again.
_MAX_REPEATS = 2
# A sample that takes this many times as long as the warm-up promised is given up.
_PATIENCE = 20.0
_LEAST_PATIENCE_S = 60.0


def visit(
    trial: Trial, definition: StudyDefinition, *, incumbent: float, deadline_s: float
) -> Outcome:
    """Measure briefly: a block, and further ones while it keeps up with the incumbent.

    Args:
        trial: Ready, not yet asked for anything.
        definition: Says how long a block is and how many there may be.
        incumbent: Units per second of the best configuration so far, 0 for none.
        deadline_s: Monotonic time after which nothing is measured again.
    """
    step_s = _warm_up(trial, definition)
    # A whole optimizer step in each block, where that does not take much longer.
    accumulation = trial.config.gradient_accumulation_steps
    affordable = accumulation * step_s <= 2 * definition.block_s
    request = BlockRequest(
        min_s=definition.block_s,
        multiple_of=accumulation if affordable else 1,
        lead_in_s=definition.block_s,
    )
    patience_s = _patience_s(request, step_s)
    samples: list[Sample] = []
    for _ in range(definition.max_blocks + _MAX_REPEATS):
        samples.append(trial.measure(request, deadline_s=patience_s))
        num_quiet = sum(not sample.disturbed for sample in samples)
        measurement = summarise(samples, gradient_accumulation_steps=accumulation)
        told = num_quiet > 0 or len(samples) > _MAX_REPEATS
        hopeless = told and measurement.units_per_s < _KEEPS_UP * incumbent
        late = time.monotonic() > deadline_s
        if hopeless or late or num_quiet == definition.max_blocks:
            break
    return _outcome(trial, samples)


def run_through(trial: Trial, definition: StudyDefinition, *, deadline_s: float) -> Outcome:
    """Measure longer and without a pause, in whole optimizer steps, as training runs.

    Args:
        trial: Ready, not yet asked for anything.
        definition: Says how long to measure.
        deadline_s: Monotonic time after which nothing is measured again.
    """
    step_s = _warm_up(trial, definition)
    accumulation = trial.config.gradient_accumulation_steps
    block_s = max(definition.block_s, accumulation * step_s)
    request = BlockRequest(
        num_blocks=math.ceil(definition.confirm_s / block_s),
        min_s=definition.block_s,
        multiple_of=accumulation,
        lead_in_s=definition.confirm_s,
    )
    patience_s = _patience_s(request, step_s)
    samples = [trial.measure(request, deadline_s=patience_s)]
    while samples[-1].disturbed and len(samples) <= _MAX_REPEATS and time.monotonic() < deadline_s:
        samples.append(trial.measure(request, deadline_s=patience_s))
    return _outcome(trial, samples)


def _warm_up(trial: Trial, definition: StudyDefinition) -> float:
    """Run the first steps; gives the seconds that one takes."""
    sample = trial.measure(WARM_UP, deadline_s=definition.start_deadline_s)
    block: Block = sample.blocks[-1]
    return block.duration_s / block.num_steps


def _patience_s(request: BlockRequest, step_s: float) -> float:
    """Seconds after which an answer to `request` is given up."""
    steps_s = (request.multiple_of + request.min_steps) * step_s
    expected_s = request.num_blocks * max(request.min_s, steps_s) + request.lead_in_s
    return max(_LEAST_PATIENCE_S, _PATIENCE * expected_s)


def _outcome(trial: Trial, samples: list[Sample]) -> Outcome:
    assert trial.start_up_s is not None
    return Outcome(
        measurement=summarise(
            samples, gradient_accumulation_steps=trial.config.gradient_accumulation_steps
        ),
        samples=samples,
        start_mode=trial.mode,
        start_up_s=trial.start_up_s,
        duration_s=trial.age_s,
        unit=trial.unit,
    )
