"""What settings must keep to, besides being fast: limits that people have, and what is saved."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, ClassVar

from pydantic import Field

from autotune.config import ThroughputConfig

_AtLeast1 = Annotated[int, Field(ge=1)]


class Objective(enum.StrEnum):
    """Of what settings are to bring more, or take less."""

    THROUGHPUT = "throughput"
    CPU = "cpu"
    ENERGY = "energy"

    @property
    def label(self) -> str:
        """What is counted, for people."""
        return {
            Objective.THROUGHPUT: "throughput",
            Objective.CPU: "CPU seconds per sample",
            Objective.ENERGY: "energy per sample",
        }[self]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What settings must keep to.

    Attributes:
        batch_size: Theirs, of a micro-batch.
        max_workers: The most workers of a loader.
        max_memory_bytes: The most memory of the whole process tree, with what it holds in
            `/dev/shm`.
        objective: What is best among those that do.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    batch_size: _AtLeast1 | None = None
    max_workers: Annotated[int, Field(ge=0)] | None = None
    max_memory_bytes: _AtLeast1 | None = None
    objective: Objective = Objective.THROUGHPUT

    def allow(self, config: ThroughputConfig) -> bool:
        """Whether a configuration keeps to what can be told before it runs."""
        return (self.batch_size is None or config.batch_size == self.batch_size) and (
            self.max_workers is None or config.num_workers <= self.max_workers
        )

    def __str__(self) -> str:
        """As it was asked for: `batch_size 32, at most 4 workers`."""
        parts = []
        if self.batch_size is not None:
            parts.append(f"batch_size {self.batch_size}")
        if self.max_workers is not None:
            parts.append(f"at most {self.max_workers} workers")
        if self.max_memory_bytes is not None:
            parts.append(f"at most {self.max_memory_bytes / 2**20:,.0f} MiB of memory")
        if self.objective is not Objective.THROUGHPUT:
            parts.append(f"the least {self.objective.label}")
        return ", ".join(parts)
