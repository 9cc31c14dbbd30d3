"""What is expected after some measurements."""

import dataclasses
import math

import numpy as np
import pytest

from autotune.config import ThroughputConfig
from autotune.optimizer.acquisition import expected_gains, probabilities_near_best, propose
from autotune.optimizer.posterior import (
    Hyperparameters,
    Kernel,
    Observation,
    Posterior,
    fit_hyperparameters,
)

CONFIGS = [
    ThroughputConfig(batch_size=2**power, num_workers=workers, num_threads=1)
    for power in range(6)
    for workers in (0, 1, 4)
]
SIMILARITY = Kernel.of(CONFIGS)
FLAT = np.zeros(len(CONFIGS))
SPREADS = Hyperparameters()
ALL = np.full(len(CONFIGS), True)
BLOCKS_S = np.full(len(CONFIGS), 0.25)


def place(batch_size, num_workers=0):
    return CONFIGS.index(
        ThroughputConfig(batch_size=batch_size, num_workers=num_workers, num_threads=1)
    )


def seen(index, log_rate, *, at_s=0.0, duration_s=1.0, error=0.0):
    return Observation(
        index=index, at_s=at_s, log_rate=log_rate, duration_s=duration_s, error=error
    )


def believe(*observations, law=FLAT, hyperparameters=SPREADS):
    return Posterior(SIMILARITY, hyperparameters, law, observations)


def test_what_was_measured_long_and_often_is_believed():
    often = [seen(place(4), 1.0, at_s=1000.0 * n, duration_s=60.0) for n in range(50)]
    posterior = believe(*often)
    assert posterior.mean[place(4)] == pytest.approx(1.0, abs=0.01)
    assert math.sqrt(posterior.variance[place(4)]) < 0.02


def test_a_measurement_that_may_be_far_off_moves_little_and_is_not_sought_again():
    sure, unsure = seen(place(4), 1.0), seen(place(8, 4), -1.0, error=2.0)
    posterior = believe(sure, unsure)
    assert posterior.mean[place(8, 4)] == pytest.approx(1.0, abs=0.1)
    assert believe(sure, seen(place(8, 4), -1.0)).mean[place(8, 4)] < -0.5
    one, other = posterior.noise(np.array([place(8, 4), place(4, 4)]), np.ones(2))
    assert one == pytest.approx(other + 4.0)


def test_a_measurement_tells_of_similar_configurations_and_less_of_others():
    posterior = believe(seen(place(4), 3.0))
    sd = np.sqrt(posterior.variance)
    assert sd[place(4)] < sd[place(8)] < sd[place(32)]
    assert sd[place(8)] < sd[place(8, 4)]
    assert posterior.mean[place(8)] == pytest.approx(3.0, abs=0.1)


def test_a_batch_size_at_which_a_loop_suddenly_slows_is_a_surprise_that_is_believed_in_the_end():
    observations = [
        seen(place(batch_size), log_rate, at_s=at_s)
        for at_s, (batch_size, log_rate) in enumerate([(1, 1.0), (8, 1.0), (16, -1.0), (32, -1.0)])
    ]
    posterior = believe(*observations)
    assert posterior.surprise > 4
    assert believe(*observations[:2]).surprise < 1
    hyperparameters = fit_hyperparameters(SIMILARITY, FLAT, observations, SPREADS)
    expected = believe(*observations, hyperparameters=hyperparameters)
    assert hyperparameters.batch > 3 * SPREADS.batch
    # It is no noise.
    assert hyperparameters.noise < 2 * SPREADS.noise
    assert expected.surprise < 4
    for before, after in ((1, 8), (16, 32)):
        assert expected.mean[place(before)] == pytest.approx(expected.mean[place(after)], abs=0.1)
    assert expected.mean[place(8)] - expected.mean[place(16)] == pytest.approx(2.0, abs=0.1)


def test_what_one_collector_brings_is_not_taken_for_granted_with_another():
    configs = [
        ThroughputConfig(batch_size=size, num_workers=workers, num_threads=1, gc=collector)
        for size in (4, 32)
        for workers in (0, 2)
        for collector in ("default", "frozen", "raised")
    ]
    posterior = Posterior(
        Kernel.of(configs),
        SPREADS,
        np.zeros(len(configs)),
        [seen(0, 1.0, duration_s=60.0), seen(1, 1.7, at_s=1.0, duration_s=60.0)],
    )
    sd = np.sqrt(posterior.variance)
    # Unlike a coordinate that the kernel lacks: the third collector is known less than the two.
    assert sd[2] > 2 * max(sd[0], sd[1])
    # What the second brings is expected of other batch sizes, with workers or without.
    for place in (4, 7, 10):
        assert posterior.mean[place] - posterior.mean[place - 1] == pytest.approx(0.6, abs=0.25)


def test_a_collector_that_all_have_changes_nothing():
    frozen = [dataclasses.replace(config, gc="frozen") for config in CONFIGS]
    covariance = Kernel.of(frozen).covariance(SPREADS)
    assert covariance == pytest.approx(SIMILARITY.covariance(SPREADS))


def test_drift_that_two_measurements_shared_says_nothing_of_their_ratio():
    drifting = Hyperparameters(drift=0.6)

    def ratio_sd(apart_s):
        posterior = believe(
            seen(place(4), 1.0, duration_s=10.0),
            seen(place(32), 1.2, at_s=apart_s, duration_s=10.0),
            hyperparameters=drifting,
        )
        both = [place(4), place(32)]
        covariance = posterior.covariance[np.ix_(both, both)]
        return math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])

    assert ratio_sd(0.1) < 0.7 * ratio_sd(600.0)


def test_the_outlook_is_what_conditioning_on_the_next_measurement_does():
    before = [seen(place(4), 1.0), seen(place(8, 1), 1.3, at_s=3.0)]
    posterior = believe(*before)
    index, at_s = np.array([place(16, 4), place(4)]), 5.0
    covariance, variance = posterior.outlook(index, at_s)
    variance = variance + posterior.noise(index, np.array([2.0, 2.0]))
    for column in range(2):
        new = seen(index[column], 7.0, at_s=at_s, duration_s=2.0)
        after = believe(*before, new)
        explained = np.outer(covariance[:, column], covariance[:, column]) / variance[column]
        assert after.covariance == pytest.approx(posterior.covariance - explained, abs=1e-6)


def test_draws_have_the_mean_and_the_covariance():
    posterior = believe(seen(place(4), 1.0), seen(place(32, 4), 2.0))
    some = np.array([place(32, 4), place(8), place(4)])
    draws = posterior.draws(some, 20_000, seed=0)
    assert draws.mean(axis=0) == pytest.approx(posterior.mean[some], abs=0.02)
    assert np.cov(draws.T) == pytest.approx(posterior.covariance[np.ix_(some, some)], abs=0.01)


def test_spreads_follow_what_was_seen():
    random = np.random.default_rng(0)

    def observe(process, noise):
        return [
            seen(
                place(4),
                1.0 + random.normal(0, math.hypot(process, noise / math.sqrt(duration_s))),
                at_s=1e4 * run,
                duration_s=duration_s,
            )
            for run in range(12)
            for duration_s in (0.1, 1.0, 10.0, 100.0)
        ]

    steady = fit_hyperparameters(SIMILARITY, FLAT, observe(0.01, 0.01), SPREADS)
    noisy = fit_hyperparameters(SIMILARITY, FLAT, observe(0.01, 0.15), SPREADS)
    uneven = fit_hyperparameters(SIMILARITY, FLAT, observe(0.15, 0.01), SPREADS)
    assert noisy.noise > 3 * steady.noise
    assert noisy.noise == pytest.approx(0.15, rel=0.5)
    assert math.hypot(uneven.process, uneven.drift) > 3 * math.hypot(steady.process, steady.drift)


def test_spreads_stay_within_reach_of_what_was_expected_whatever_was_seen():
    absurd = [seen(n % len(CONFIGS), 1e4 * (-1) ** n, duration_s=60.0) for n in range(60)]
    found = fit_hyperparameters(SIMILARITY, FLAT, absurd, SPREADS)
    for name in ("step", "workers", "own"):
        assert getattr(found, name) / getattr(SPREADS, name) < 3
    for name in ("process", "drift", "noise", "workers_noise"):
        assert getattr(found, name) / getattr(SPREADS, name) < 8
    assert np.isfinite(believe(*absurd, hyperparameters=found).mean).all()


def test_a_gain_is_expected_where_an_uncertain_configuration_may_be_the_best():
    # In closed form, for two independent normals of which one is known.
    means, shifts = np.array([0.0, 0.0]), np.array([[0.0], [0.1]])
    known = 0.1 / math.sqrt(2 * math.pi)
    assert expected_gains(means, shifts, tie=0.0) == pytest.approx([known], rel=0.1)
    assert expected_gains(np.array([1.0, 0.0]), shifts, tie=0.0) == pytest.approx([0.0], abs=1e-9)


def test_what_is_ahead_by_no_more_than_a_tie_gains_nothing():
    means, shifts = np.array([0.0, 0.0]), np.array([[0.0], [0.1]])
    # 0.1 (φ(1) - 1 (1 - Φ(1))), the mean of what lies more than one standard deviation ahead.
    assert expected_gains(means, shifts, tie=0.1) == pytest.approx([0.00833], rel=0.1)
    assert expected_gains(means, 0.1 * shifts, tie=0.1) == pytest.approx([0.0], abs=1e-9)


def test_a_cheap_measurement_is_preferred_to_a_dear_one_that_tells_the_same():
    posterior = believe(seen(place(4), 1.0))
    # Neither resembles what was seen more than the other.
    both = [place(16, 4), place(1, 4)]
    may_run = np.isin(np.arange(len(CONFIGS)), both)
    for dear, cheap in (both, reversed(both)):
        times = {
            "start_s": np.where(np.arange(len(CONFIGS)) == dear, 9.0, 0.5),
            "block_s": BLOCKS_S,
        }
        proposal = propose(
            posterior, may_run, **times, now_s=1.0, left_s=np.full(len(CONFIGS), 100.0), tie=0.01
        )
        assert proposal.index == cheap
        assert proposal.gain_per_s > 0


def test_nothing_is_proposed_that_takes_more_than_is_left():
    posterior = believe(seen(place(4), 1.0))

    def proposed(left_s, may_run=ALL):
        times = {"start_s": np.ones(len(CONFIGS)), "block_s": BLOCKS_S}
        lefts_s = np.full(len(CONFIGS), left_s)
        return propose(posterior, may_run, **times, now_s=1.0, left_s=lefts_s, tie=0.01)

    assert proposed(1.0) is None
    assert proposed(1.3).num_blocks == 1
    assert proposed(1.3, ~ALL) is None


def test_probabilities_count_only_what_can_run():
    posterior = believe(
        *(seen(place(2**power), 0.1 * power, duration_s=60.0) for power in range(6))
    )
    may_run = np.array([config.num_workers == 0 for config in CONFIGS])
    near = probabilities_near_best(posterior, may_run, within=0.02, seed=0)
    assert near[place(32)] > 0.9
    assert not near[~may_run].any()


def test_what_cannot_run_keeps_nothing_else_out_of_reach():
    posterior = believe(seen(place(32), 9.0, duration_s=60.0), seen(place(1), 1.0))
    may_run = np.array([config.batch_size < 32 for config in CONFIGS])
    places = posterior.within_reach(may_run, 3.0)
    assert len(places)
    assert all(may_run[places])
    assert not len(posterior.within_reach(np.zeros(len(CONFIGS), dtype=bool), 3.0))
