"""How long a trial is measured: briefly in the search, longer where it decides.

Samples that other processes disturbed are kept, and measured again within a bound.
"""

from __future__ import annotations

import dataclasses
import math
import time

from autotune.measurement import Sample, summarise
from autotune.search.definition import StudyDefinition
from autotune.search.study import Outcome
from autotune.trials.trial import BlockRequest, Trial

# The first steps pay for lazy initialisation, caches for new shapes and a growing allocator.
WARM_UP = BlockRequest(min_s=0.1, min_steps=2)
# A visit goes on while its rate is at least this share of the best one so far.
_KEEPS_UP = 0.9
# At most so many disturbed samples of a trial are measured again.
_MAX_REPEATS = 2
# An answer that takes this many times as long as expected is given up.
_PATIENCE = 20.0
_LEAST_PATIENCE_S = 30.0
# Once the time is up, what has begun may still take so many times as long as expected.
_LATE_PATIENCE = 3.0
_LEAST_LATE_PATIENCE_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a trial may take.

    Attributes:
        step_s: Seconds that a step should take, as far as is known; None if nothing is.
        first_step_deadline_s: Patience with the first steps where nothing is known.
        end_s: Monotonic time after which nothing is measured again.
    """

    step_s: float | None
    first_step_deadline_s: float
    end_s: float

    def patience_s(self, expected_s: float) -> float:
        """Seconds after which an answer that should take `expected_s` is given up."""
        patience_s = max(_LEAST_PATIENCE_S, _PATIENCE * expected_s)
        left_s = self.end_s - time.monotonic()
        return min(patience_s, max(left_s, _LATE_PATIENCE * expected_s, _LEAST_LATE_PATIENCE_S))


def visit(
    trial: Trial, definition: StudyDefinition, *, incumbent: float, limits: Limits
) -> Outcome:
    """Measure briefly: a block, and further ones while it keeps up with the incumbent.

    Args:
        trial: Ready, not yet asked for anything.
        definition: Says how long a block is and how many there may be.
        incumbent: Units per second of the best configuration so far, 0 for none.
        limits: What the trial may take.
    """
    step_s = _warm_up(trial, definition, limits)
    accumulation = trial.config.gradient_accumulation_steps
    request = BlockRequest(
        min_s=definition.block_s,
        multiple_of=accumulation if _is_affordable(trial, definition, step_s) else 1,
        lead_in_s=definition.block_s,
    )
    patience_s = limits.patience_s(_expected_s(request, step_s))
    samples: list[Sample] = []
    for _ in range(definition.max_blocks + _MAX_REPEATS):
        samples.append(trial.measure(request, deadline_s=patience_s))
        num_quiet = sum(not sample.disturbed for sample in samples)
        measurement = summarise(samples, gradient_accumulation_steps=accumulation)
        told = num_quiet > 0 or len(samples) > _MAX_REPEATS
        hopeless = told and measurement.units_per_s < _KEEPS_UP * incumbent
        late = time.monotonic() > limits.end_s
        if hopeless or late or num_quiet == definition.max_blocks:
            break
    return _outcome(trial, samples)


def run_through(trial: Trial, definition: StudyDefinition, *, limits: Limits) -> Outcome:
    """Measure longer and without a pause, in whole optimizer steps, as training runs.

    Args:
        trial: Ready, not yet asked for anything.
        definition: Says how long to measure.
        limits: What the trial may take.
    """
    step_s = _warm_up(trial, definition, limits)
    accumulation = trial.config.gradient_accumulation_steps
    request = BlockRequest(
        num_blocks=math.ceil(definition.confirm_s / max(definition.block_s, accumulation * step_s)),
        min_s=definition.block_s,
        multiple_of=accumulation,
        lead_in_s=definition.confirm_s,
    )
    patience_s = limits.patience_s(_expected_s(request, step_s))
    samples = [trial.measure(request, deadline_s=patience_s)]
    while (
        samples[-1].disturbed and len(samples) <= _MAX_REPEATS and time.monotonic() < limits.end_s
    ):
        samples.append(trial.measure(request, deadline_s=patience_s))
    return _outcome(trial, samples)


def _warm_up(trial: Trial, definition: StudyDefinition, limits: Limits) -> float:
    """Run the first steps, the first optimizer step too if that is cheap; gives a step's time."""
    patience_s = limits.first_step_deadline_s
    if limits.step_s is not None:
        patience_s = limits.patience_s(WARM_UP.min_s + WARM_UP.min_steps * limits.step_s)
    step_s = _step_s(trial.measure(WARM_UP, deadline_s=patience_s))
    # The first step is no measure of those that follow.
    accumulation = trial.config.gradient_accumulation_steps
    num_steps = accumulation if _is_affordable(trial, definition, step_s) else 1
    again = BlockRequest(min_s=0.0, min_steps=num_steps)
    patience_s = limits.patience_s(num_steps * step_s)
    return min(step_s, _step_s(trial.measure(again, deadline_s=patience_s)))


def _step_s(sample: Sample) -> float:
    block = sample.blocks[-1]
    return block.duration_s / block.num_steps


def _is_affordable(trial: Trial, definition: StudyDefinition, step_s: float) -> bool:
    """Whether a whole optimizer step takes not much longer than a block."""
    return trial.config.gradient_accumulation_steps * step_s <= 2 * definition.block_s


def _expected_s(request: BlockRequest, step_s: float) -> float:
    steps_s = (request.multiple_of + request.min_steps) * step_s
    return request.num_blocks * max(request.min_s, steps_s) + request.lead_in_s


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
