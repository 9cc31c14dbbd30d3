"""The confirmation: which configurations run again in fresh processes, and for how many rounds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence, Set

from autotune.analysis.comparison import choose_by_runs, complete_rounds
from autotune.analysis.knowledge import Knowledge
from autotune.config import ThroughputConfig
from autotune.intervals import INDIFFERENCE
from autotune.measurement import FailureCause
from autotune.optimizer.trial_cost import LONGEST_UPDATE_S, ConfirmingCost
from autotune.study.definition import MOST_ROUNDS, StudyDefinition
from autotune.study.records import Phase, TrialRecord, telling_failures
from autotune.system.memory import memory_left_bytes, shared_memory_left_bytes
from autotune.tuning.executor import Executor

# Of the free memory, and of that in /dev/shm, what candidates that are open at once may take.
_MEMORY_SHARE = 0.7
# The same of a GPU's memory.
_DEVICE_SHARE = 0.5
# Timing step and loader by themselves takes about so long.
_PROBED_S = 1.0
# Of the budget, what is kept for the confirmation at most.
LARGEST_SHARE = 0.5


def confirmation_s(
    definition: StudyDefinition, baseline: TrialRecord, *, num_candidates: int
) -> float:
    """Time kept for the confirmation: what it takes, but never most of the budget."""
    num_runs = (num_candidates + 1) * definition.confirm_rounds
    return min(num_runs * _run_s(definition, baseline), LARGEST_SHARE * definition.budget_s)


def confirming_cost(definition: StudyDefinition, baseline: TrialRecord) -> ConfirmingCost:
    """What a confirming run takes, by the baseline's start; see `ConfirmingCost`."""
    return ConfirmingCost(start_s=baseline.start_up_s or 0.0, measured_s=definition.confirm_s)


class Confirmation:
    """Chooses the candidates, and runs them and the baseline in rounds."""

    def __init__(self, executor: Executor) -> None:
        self._definition = executor.definition
        self._executor = executor

    def choose(
        self, knowledge: Knowledge, excluded: Set[ThroughputConfig], baseline: TrialRecord
    ) -> tuple[ThroughputConfig, ...]:
        """As many candidates as are asked for, or as fit in the time that is left; at least one.

        Args:
            knowledge: What the search has found.
            excluded: What is none: the baseline, and what failed since.
            baseline: The baseline's trial, which tells what a run takes.
        """
        num_runs = self._executor.left_s / (
            self._definition.confirm_rounds * _run_s(self._definition, baseline)
        )
        number = max(1, min(self._definition.num_candidates, int(num_runs) - 1))
        return knowledge.candidates(baseline.config, excluded, number)

    def fit_together(
        self,
        baseline: ThroughputConfig,
        candidates: Sequence[ThroughputConfig],
        earlier: Sequence[TrialRecord] = (),
    ) -> bool:
        """Whether all of these may be in memory at once, by what their trials so far held.

        Args:
            baseline: The baseline.
            candidates: The others.
            earlier: Trials of another study that tell it as well.
        """
        configs = {baseline, *candidates}
        found = [
            (record.config, record)
            for record in (*self._executor.store.records(), *earlier)
            if record.measurement is not None and record.config in configs
        ]
        if not _fit_on_devices(found, self._definition.gpu_headroom):
            return False
        needed: dict[ThroughputConfig, int] = {}
        shared: dict[ThroughputConfig, int] = {}
        for config, record in found:
            measurement = record.measurement
            assert measurement is not None
            held = measurement.peak_memory_bytes + measurement.shared_memory_bytes
            needed[config] = max(needed.get(config, 0), held)
            shared[config] = max(shared.get(config, 0), measurement.shared_memory_bytes)
        shared_left = shared_memory_left_bytes()
        return sum(needed.values()) < _MEMORY_SHARE * memory_left_bytes() and (
            shared_left is None or sum(shared.values()) <= _MEMORY_SHARE * shared_left
        )

    def confirm(
        self,
        configs: Sequence[ThroughputConfig],
        *,
        side_by_side: bool,
        substitutes: Callable[[Set[ThroughputConfig]], Sequence[ThroughputConfig]],
        show: Callable[[], None],
        stop: Callable[[Sequence[TrialRecord]], bool] = lambda _: False,
        measured_gain: Callable[[Set[ThroughputConfig]], Sequence[ThroughputConfig]] = lambda _: (),
    ) -> list[TrialRecord]:
        """Run all in fresh processes, round by round while there is time; at least one round.

        Rounds that do not tell whether there is a gain are followed by as many again. Where all
        candidates failed and the time is up, there is one more round for what takes their place.
        Where the candidates turn out to be no gain, what the search measured as one takes their
        place if there is time for that.

        Args:
            configs: The baseline first; the others leave when they fail, or are ruled out by what
                others taught.
            substitutes: What to go on with when all of them have, given those.
            side_by_side: Whether all are open at once; where one then does not answer, the round
                does not count, and those that follow are run one after another.
            show: Called after each round.
            stop: Whether to go no further, by the runs so far; asked after each round.
            measured_gain: What the search measured as a gain beside those given, if anything.
        """
        shuffle = random.Random(self._definition.seed)
        baseline, *candidates = configs
        confirmed: list[TrialRecord] = []
        rounds_left = self._definition.confirm_rounds
        most = MOST_ROUNDS * rounds_left
        may_overrun = True
        tried: set[ThroughputConfig] = set()
        for number in itertools.count(1):
            cut_short = False
            tried |= set(candidates)
            left_s = self._executor.left_s
            found = self._executor.run_round(
                [baseline, *candidates],
                number=number,
                side_by_side=side_by_side,
                shuffle=shuffle,
            )
            round_s = left_s - self._executor.left_s
            failures = [record for record in found if record.failure is not None]
            causes = {record.failure.cause for record in failures if record.failure is not None}
            if side_by_side and FailureCause.TIMED_OUT in causes:
                # One that stands still may hold a lock that another waits for.
                self._executor.observer.note("from here on one after another: that may be why")
                side_by_side = False
            else:
                confirmed += found
                telling = telling_failures(confirmed)
                # Where one was killed by somebody, there is nothing to compare it with.
                cut_short = any(record.number not in telling for record in failures)
                rounds_left -= not cut_short
                failed = {record.config for record in confirmed if record.number in telling}
                remaining = [
                    config
                    for config in candidates
                    if config not in failed and not self._executor.rules_out(config)
                ]
                if candidates and not remaining:
                    remaining = list(substitutes(failed))
                    if remaining:
                        rounds_left = self._definition.confirm_rounds
                candidates = remaining
            show()
            if stop(confirmed):
                break
            if rounds_left <= 0 and (number >= most or not _is_undecided(confirmed, baseline)):
                has_time = self._executor.left_s >= round_s
                others = (
                    measured_gain(tried) if has_time and not _has_gain(confirmed, baseline) else ()
                )
                if not others:
                    break
                self._executor.observer.note(
                    "that is no gain: what the search measured as one is run instead: "
                    + "; ".join(config.summary for config in others)
                )
                confirmed = [record for record in confirmed if record.config == baseline]
                candidates = list(others)
                rounds_left = self._definition.confirm_rounds
                most = number + MOST_ROUNDS * rounds_left
                continue
            if self._executor.left_s < round_s and not cut_short:
                if not may_overrun or not candidates or _has_candidate(confirmed, baseline):
                    break
                may_overrun = False
        return confirmed


def confirmed_together(
    records: Sequence[TrialRecord], configs: Set[ThroughputConfig]
) -> list[TrialRecord]:
    """The confirming runs of some configs, on any machine, of rounds in which all of them ran.

    Args:
        records: Of a study.
        configs: The baseline and what was confirmed beside it.
    """
    rounds: dict[tuple[str | None, int | None], list[TrialRecord]] = {}
    for record in records:
        if record.phase is Phase.CONFIRM and record.measurement and record.config in configs:
            rounds.setdefault((record.host, record.round_number), []).append(record)
    return [
        record
        for found in rounds.values()
        if configs <= {record.config for record in found}
        for record in found
    ]


def _has_candidate(confirmed: Sequence[TrialRecord], baseline: ThroughputConfig) -> bool:
    """Whether there is a whole round of the baseline and something beside it."""
    return len(complete_rounds(confirmed, baseline)) > 1


def _has_gain(confirmed: Sequence[TrialRecord], baseline: ThroughputConfig) -> bool:
    """Whether a candidate is surely faster."""
    runs = complete_rounds(confirmed, baseline)
    return len(runs) > 1 and choose_by_runs(runs, baseline).speedup.significant


def _is_undecided(confirmed: Sequence[TrialRecord], baseline: ThroughputConfig) -> bool:
    """Whether there seems to be a gain worth having, and may be none."""
    runs = complete_rounds(confirmed, baseline)
    if len(runs) < 2:
        return False
    speedup = choose_by_runs(runs, baseline).speedup
    return speedup.ratio > 1.0 + INDIFFERENCE and not speedup.significant


def _fit_on_devices(
    found: Sequence[tuple[ThroughputConfig, TrialRecord]], gpu_headroom: float
) -> bool:
    """Whether all may be on the GPUs at once, each with all that it and others took there.

    Well below what one alone may take: torch's allocator gives nothing back, and one that finds
    its memory taken would run otherwise than by itself.
    """
    limit = min(_DEVICE_SHARE, 1 - gpu_headroom)
    taken: dict[tuple[int, ThroughputConfig], float] = {}
    for config, record in found:
        for device in itertools.chain.from_iterable(sample.devices for sample in record.samples):
            key = device.device, config
            taken[key] = max(taken.get(key, 0.0), device.used_share)
    together: dict[int, float] = {}
    for (number, _), share in taken.items():
        together[number] = together.get(number, 0.0) + share
    return all(share <= limit for share in together.values())


def _run_s(definition: StudyDefinition, baseline: TrialRecord) -> float:
    """What a confirming run takes, its start included: as long as the baseline's at most.

    The baseline's may have been measured longer, to see the end of its first epoch.
    """
    assert baseline.duration_s is not None
    measurement = baseline.measurement
    if measurement is None or baseline.start_up_s is None:
        return baseline.duration_s
    update_s = min(LONGEST_UPDATE_S, measurement.seconds_per_optimizer_step)
    measured_s = max(definition.confirm_s, update_s)
    run_s = baseline.start_up_s + measurement.warm_up_s + measured_s + _PROBED_S
    return min(baseline.duration_s, run_s)
