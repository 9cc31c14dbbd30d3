"""What one measured trial gives: blocks of steps, and the figures computed from them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

# A block is disturbed when processes outside the trial used more than this share of the usable
# cores while it ran. With as many threads as cores, a single busy neighbour slows a step 3-10
# times, so the limit is low.
DISTURBED_CPU_SHARE = 0.10


class StartMode(enum.StrEnum):
    """How a trial is started. The values are stored in studies: never rename one."""

    FORK = "fork"
    FRESH = "fresh"


class FailureCause(enum.StrEnum):
    """Why a trial gave no result. The values are stored in studies: never rename one."""

    CRASHED = "crashed"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    TIMED_OUT = "timed out"
    NO_DATA = "no data"
    LOOP_ENDED = "loop ended early"
    NEVER_CALLED = "never called autotune"
    INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An expected failure of a trial: the cause, one line about it, and the end of its output."""

    cause: FailureCause
    message: str
    output: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of consecutive training steps, timed in the training process.

    Attributes:
        num_steps: Micro-steps, that is batches handed to the loop.
        num_samples: Samples in them.
        num_units: Units in them, as the script counts them (samples where it does not say).
        duration_s: From the first request for a batch to the end of the last step.
        wait_s: The part of it that the loop waited for the loader.
        first_batch_at_s: Monotonic time at which the first batch was handed to the loop.
        ready_change: Batches that the loader held ready at the end, less those at the start.
    """

    num_steps: int
    num_samples: int
    num_units: float
    duration_s: float
    wait_s: float
    first_batch_at_s: float
    ready_change: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the machine did while one or more blocks ran, seen from the coordinator.

    Attributes:
        wall_s: Length of the observation.
        cpu_s: CPU seconds of the trial's process tree.
        other_cpu_s: CPU seconds of everything else on the usable cores, stolen time included; what
            a quota leaves to others is not counted.
        memory_bytes: Memory of the tree at the end (PSS, so that shared pages count once).
    """

    wall_s: float
    cpu_s: float
    other_cpu_s: float
    memory_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Consecutive blocks measured without a pause, and what the machine did meanwhile."""

    blocks: tuple[Block, ...]
    usage: Usage
    usable_cores: int

    @property
    def disturbed(self) -> bool:
        """Whether other processes took a noticeable share of the usable cores."""
        capacity_s = self.usage.wall_s * self.usable_cores
        return self.usage.other_cpu_s > DISTURBED_CPU_SHARE * capacity_s


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The figures of one trial, from all its samples.

    Attributes:
        samples_per_s: Sustained throughput in samples.
        units_per_s: Sustained throughput in the script's own units (the objective).
        seconds_per_step: Wall seconds per micro-step.
        seconds_per_optimizer_step: The same per optimizer step.
        data_wait_share: Share of the time that the loop waited for the loader, 0 to 1.
        cpu_utilisation: CPU seconds of the process tree ÷ (wall seconds x usable cores).
        cpu_s_per_sample: CPU seconds of the process tree per sample.
        peak_memory_bytes: Largest memory of the process tree seen at a block's end.
        measured_s: Wall seconds inside the counted blocks.
        num_steps: Micro-steps in the counted blocks.
        num_disturbed: Samples during which the machine was busy with something else.
    """

    samples_per_s: float
    units_per_s: float
    seconds_per_step: float
    seconds_per_optimizer_step: float
    data_wait_share: float
    cpu_utilisation: float
    cpu_s_per_sample: float
    peak_memory_bytes: int
    measured_s: float
    num_steps: int
    num_disturbed: int


def sustained_steps(blocks: Sequence[Block]) -> float:
    """Steps that the loader could feed for good, of those that `blocks` counted.

    A full prefetch buffer lets a loader-bound loop run at compute speed for a while. Flow balance
    takes that off: what the loader produced is what was consumed plus the change in the batches
    it holds ready. A buffer that fills shows spare capacity, which earns nothing.

    Source: conservation of flow over an observation (Denning & Buzen 1978, "The Operational
    Analysis of Queueing Network Models").
    """
    num_steps = sum(block.num_steps for block in blocks)
    drained = min(0, sum(block.ready_change for block in blocks))
    # At least half a step: a short block may drain everything that it consumed.
    return max(num_steps + drained, 0.5)


def summarise(samples: Sequence[Sample], *, gradient_accumulation_steps: int) -> Measurement:
    """The figures of one trial. Undisturbed samples decide; disturbed ones only if all are.

    Args:
        samples: At least one.
        gradient_accumulation_steps: Micro-steps per optimizer step.
    """
    counted = [sample for sample in samples if not sample.disturbed] or list(samples)
    blocks = [block for sample in counted for block in sample.blocks]
    duration_s = sum(block.duration_s for block in blocks)
    num_steps = sum(block.num_steps for block in blocks)
    num_samples = sum(block.num_samples for block in blocks)
    # Balanced sample by sample: between two samples the loop pauses and the buffer fills again.
    balance = sum(sustained_steps(sample.blocks) for sample in counted) / num_steps
    seconds_per_step = duration_s / (num_steps * balance)
    cpu_s = sum(sample.usage.cpu_s for sample in counted)
    wall_s = sum(sample.usage.wall_s for sample in counted)
    return Measurement(
        samples_per_s=num_samples * balance / duration_s,
        units_per_s=sum(block.num_units for block in blocks) * balance / duration_s,
        seconds_per_step=seconds_per_step,
        seconds_per_optimizer_step=seconds_per_step * gradient_accumulation_steps,
        data_wait_share=sum(block.wait_s for block in blocks) / duration_s,
        cpu_utilisation=cpu_s / (wall_s * counted[0].usable_cores),
        cpu_s_per_sample=cpu_s / wall_s * duration_s / num_samples,
        peak_memory_bytes=max(sample.usage.memory_bytes for sample in samples),
        measured_s=duration_s,
        num_steps=num_steps,
        num_disturbed=sum(sample.disturbed for sample in samples),
    )


def figure(value: float) -> str:
    """A measured value for people: four significant digits, whole numbers from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
