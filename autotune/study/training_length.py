"""How long the whole training is, where its user says so."""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Annotated, ClassVar

from pydantic import Field

from autotune.config import ThroughputConfig
from autotune.errors import BadInputError


class LengthUnit(enum.StrEnum):
    """What a training is counted in. The values are stored in studies: never rename one."""

    EPOCHS = "epochs"
    STEPS = "steps"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLength:
    """How long the whole training is; the number of samples does not depend on the settings.

    Attributes:
        count: How many of the unit.
        unit: Epochs, or optimizer steps with the baseline's settings.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    count: Annotated[int, Field(ge=1)]
    unit: LengthUnit

    def __str__(self) -> str:
        return f"{self.count:,} {self.unit.removesuffix('s') if self.count == 1 else self.unit}"

    def num_samples(self, baseline: ThroughputConfig, steps_per_epoch: int | None) -> int | None:
        """Samples in the whole training; None where an epoch's length would have to be known.

        Args:
            baseline: The settings without tuning.
            steps_per_epoch: Micro-steps in an epoch with them.
        """
        if self.unit is LengthUnit.STEPS:
            return self.count * baseline.effective_batch_size
        return (
            steps_per_epoch
            and self.count * steps_per_epoch * baseline.batch_size * baseline.num_ranks
        )


def parse_training_length(text: str, *, source: str) -> TrainingLength:
    """The length in `20 epochs`, `20epochs` or `5000 steps`.

    Raises:
        BadInputError: The text is something else, or zero.
    """
    match = re.fullmatch(r"0*([1-9]\d{0,14}) *(epoch|step)s?", text.strip())
    if match is None:
        raise BadInputError(
            f"{source}: must be a length such as 20epochs or 5000steps (optimizer steps), not "
            f"{text!r}"
        )
    return TrainingLength(count=int(match[1]), unit=LengthUnit(match[2] + "s"))
