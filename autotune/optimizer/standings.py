"""Which configuration to choose, and which to confirm, by what is expected of all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from autotune.axes import AXES, WITHOUT_WORKERS, Kind
from autotune.config import ThroughputConfig
from autotune.intervals import INDIFFERENCE, TWO_SIDED_95
from autotune.optimizer.acquisition import probabilities_near_best
from autotune.optimizer.posterior import Posterior
from autotune.space import preference, settings_of

# Configurations whose means are so close are taken for equal (see `space.preference`): half
# of what is no matter, since means are uncertain.
_TIE = INDIFFERENCE / 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is expected of one configuration.

    Attributes:
        config: The configuration.
        probability: That it is within 2 % of the fastest of the space.
        units_per_s: Its expected throughput.
        log_ratio: Expected logarithm of its rate ÷ that of the first of the space.
        log_ratio_sd: Standard deviation of that.
        was_measured: Whether a run of it showed anything.
    """

    config: ThroughputConfig
    probability: float
    units_per_s: float
    log_ratio: float
    log_ratio_sd: float
    was_measured: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expectations:
    """What a search has come to expect of its space.

    Attributes:
        configs: The space, in the posterior's order; changes are those from the first.
        posterior: What is expected of each.
        may_run: Which have not failed, and need not fail, [N].
        measured: Places of those of which a run showed anything.
    """

    configs: Sequence[ThroughputConfig]
    posterior: Posterior
    may_run: NDArray[np.bool_]
    measured: Set[int]

    def rank(self, seed: int) -> list[Standing]:
        """Configurations, the one to choose first; those that cannot run are left out.

        It is the fastest, or the preferred one of those that are equally fast.

        Args:
            seed: For the probabilities, which are reckoned by drawing.
        """
        posterior, may_run = self.posterior, self.may_run.copy()
        if not may_run.any():
            # Nothing runs any more; what did is the answer.
            may_run[list(self.measured)] = True
        near = probabilities_near_best(posterior, may_run, within=INDIFFERENCE, seed=seed)
        covariance = posterior.covariance
        ratio_variance = posterior.variance + covariance[0, 0] - 2 * covariance[0]
        order = sorted(np.flatnonzero(may_run).tolist(), key=lambda place: -posterior.mean[place])
        top = posterior.mean[order[0]]
        equals = [place for place in order if posterior.mean[place] >= top - _TIE]
        chosen = self._with_first_words(min(equals, key=self._preference), may_run)
        order.remove(chosen)
        return [
            Standing(
                config=self.configs[place],
                probability=float(near[place]),
                units_per_s=math.exp(posterior.mean[place]),
                log_ratio=float(posterior.mean[place] - posterior.mean[0]),
                log_ratio_sd=math.sqrt(max(0.0, float(ratio_variance[place]))),
                was_measured=place in self.measured,
            )
            for place in (chosen, *order)
        ]

    def simpler(self, config: ThroughputConfig) -> ThroughputConfig | None:
        """`config` with the settings taken back that are not shown to gain.

        These have the first configuration's values again. None where all are shown to gain, or
        none is.
        """
        own = self.configs.index(config)
        ends = settings_of(config), settings_of(self.configs[0])
        found = [
            place
            for place, other in enumerate(self.configs)
            if self.may_run[place]
            and all(value in pair for value, *pair in zip(settings_of(other), *ends, strict=True))
            and not self._is_shown(own, place)
        ]
        nearest = min(found, key=self._preference, default=own)
        return None if nearest in (0, own) else self.configs[nearest]

    def _with_first_words(self, chosen: int, may_run: NDArray[np.bool_]) -> int:
        """The same settings with the first configuration's words, such as its collector.

        Each where that is no loss.
        """
        place = chosen
        for name in (name for name, axis in AXES.items() if axis.kind is Kind.WORD):
            if name in WITHOUT_WORKERS and not self.configs[place].num_workers:
                continue
            value = getattr(self.configs[0], name)
            config = dataclasses.replace(self.configs[place], **{name: value})
            twin = self.configs.index(config) if config in self.configs else place
            if may_run[twin] and not self._is_shown(chosen, twin):
                place = twin
        return place

    def _is_shown(self, place: int, other: int) -> bool:
        """Whether one is shown to be faster than another by more than what is no matter.

        It is not where the 95 % interval of what it gains holds 0.
        """
        mean, covariance = self.posterior.mean, self.posterior.covariance
        variance = (
            covariance[place, place] + covariance[other, other] - 2 * covariance[place, other]
        )
        error = math.sqrt(max(0.0, float(variance)))
        return float(mean[place] - mean[other]) >= max(INDIFFERENCE, TWO_SIDED_95 * error)

    def _preference(self, place: int) -> tuple[int, ...]:
        return preference(self.configs[place], self.configs[0])


def candidates(
    standings: Sequence[Standing],
    excluded: Set[ThroughputConfig],
    *,
    measured_only: bool = False,
) -> tuple[ThroughputConfig, ...]:
    """What is to be confirmed: the first that is not excluded, if there is one.

    What was measured as a gain comes before all that was not, however much is expected of that.
    Without such a one it may have been measured never: the confirmation does that.
    """
    others = [standing for standing in standings if standing.config not in excluded]
    found = measured_gains(others) or [
        standing for standing in others if standing.was_measured or not measured_only
    ]
    return tuple(standing.config for standing in found[:1])


def measured_gains(standings: Iterable[Standing]) -> list[Standing]:
    """Those of some configurations that ran and are expected to be a gain worth having."""
    least = math.log1p(INDIFFERENCE)
    return [found for found in standings if found.was_measured and found.log_ratio > least]
