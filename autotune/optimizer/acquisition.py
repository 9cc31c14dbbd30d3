"""What to measure next: what is expected to gain the most for the time that it takes.

Source: Frazier, Powell & Dayanik 2009, "The Knowledge-Gradient Policy for Correlated Normal
Beliefs", divided by the cost of a measurement.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from autotune.optimizer.posterior import Posterior

Array = NDArray[np.float64]
# How many blocks may be asked for at once.
_NUM_BLOCKS = (1, 2, 4, 8)
# Nodes of the quadrature over what a measurement may show. What lies so many standard deviations
# below the best cannot become it, and what lies fewer below it is tried.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_OUT_OF_REACH, _TRIED = 5.0, 3.0
# Draws of all rates, of so many configurations at most: the most promising.
_NUM_DRAWS, _MOST_DRAWN = 2000, 400


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What to measure, and why.

    Attributes:
        index: Of the configuration of which a run is started.
        num_blocks: How many blocks of it.
        gain_per_s: By how much the logarithm of the rate that will be chosen is expected to rise,
            per second that the measurement takes.
    """

    index: int
    num_blocks: int
    gain_per_s: float


def propose(
    posterior: Posterior,
    may_run: NDArray[np.bool_],
    *,
    start_s: Array,
    block_s: Array,
    now_s: float,
    left_s: Array,
    tie: float,
) -> Proposal | None:
    """The best measurement; None where none fits into the time that is left.

    Args:
        posterior: What is known.
        may_run: Which configurations can be chosen, [N].
        start_s: Seconds until the first block of each can begin, [N].
        block_s: Seconds that a block of each takes, [N].
        now_s: The time, as in the observations.
        left_s: Seconds that a measurement of each may take, [N].
        tie: See `expected_gains`.
    """
    places = posterior.within_reach(may_run, _TRIED)
    if not len(places):
        return None
    found: Proposal | None = None
    near = posterior.within_reach(may_run, _OUT_OF_REACH)
    covariance, variance = posterior.outlook(places, now_s)
    for num_blocks in _NUM_BLOCKS:
        durations_s = num_blocks * block_s[places]
        costs_s = start_s[places] + durations_s
        # By how much a result one standard deviation above the expected would raise each mean.
        shifts = covariance[near] / np.sqrt(variance + posterior.noise(places, durations_s))
        gains = expected_gains(posterior.mean[near], shifts, tie)
        fits = costs_s <= left_s[places]
        rates = np.where(fits, gains / costs_s, 0.0)
        top = int(np.argmax(rates))
        if fits[top] and (found is None or rates[top] > found.gain_per_s):
            found = Proposal(
                index=int(places[top]), num_blocks=num_blocks, gain_per_s=float(rates[top])
            )
    return found


def expected_gains(means: Array, shifts: Array, tie: float) -> Array:
    """By how much the mean that is chosen is expected to rise with each of M measurements, [M].

    Without the tie, the search would go on measuring equals to tell which of them is ahead.

    Args:
        means: Of the configurations, [N].
        shifts: By how much a result one standard deviation above the expected one would raise
            the mean of each configuration, [N, M].
        tie: What is ahead by no more than that is as good, and gains nothing.
    """
    best = int(np.argmax(means))
    behind = means - means[best] - tie
    behind[best] = 0.0
    ahead = shifts - shifts[best]
    gains = np.zeros(shifts.shape[1])
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        gains += weight * (behind[:, None] + ahead * node).max(axis=0)
    return gains


def probabilities_near_best(
    posterior: Posterior, may_run: NDArray[np.bool_], *, within: float, seed: int
) -> Array:
    """For each configuration, the probability that it is within a share of the fastest, [N].

    Args:
        posterior: What is known.
        may_run: Which configurations can run, [N].
        within: The share.
        seed: Decides the draws from which it is reckoned.
    """
    probabilities = np.zeros(len(posterior.mean))
    places = posterior.within_reach(may_run, _OUT_OF_REACH)
    promise = posterior.mean[places] + _TRIED * np.sqrt(posterior.variance[places])
    places = places[np.argsort(-promise)[:_MOST_DRAWN]]
    if len(places):
        draws = posterior.draws(places, _NUM_DRAWS, seed)
        near = draws >= draws.max(axis=1, keepdims=True) - math.log1p(within)
        probabilities[places] = near.mean(axis=0)
    return probabilities
