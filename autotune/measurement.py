"""What one trial comes to: its figures, or the cause of its failure."""

from __future__ import annotations

import dataclasses
import enum
import statistics
from collections.abc import Sequence

from autotune.blocks import Block, DeviceMemory, Probes, Sample
from autotune.config import ThroughputConfig

# From this factor on, the rates of two epochs differ for another reason than noise.
_EPOCHS_ALIKE = 1.4


class StartMode(enum.StrEnum):
    """How a trial is started. The values are stored in studies: never rename one."""

    FORK = "fork"
    FRESH = "fresh"
    # In the process of an earlier trial of the same batch size, with another loader.
    SWAP = "swap"


class FailureCause(enum.StrEnum):
    """Why a trial gave no result. The values are stored in studies: never rename one."""

    CRASHED = "crashed"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_SHARED_MEMORY = "out of shared memory"
    OUT_OF_DEVICE_MEMORY = "out of GPU memory"
    TOO_MANY_FILES = "too many open files"
    # By a signal that its own code does not cause: it may have been meant for anything.
    KILLED = "killed"
    TIMED_OUT = "timed out"
    NO_DATA = "no data"
    # It ran, but so that the training would not be safe from running out of it.
    NO_HEADROOM = "too little GPU memory left"
    # What a forked process cannot use, since CUDA was initialised before the fork.
    DEVICE_AFTER_FORK = "GPU not usable after a fork"
    NOT_FINITE = "not finite"
    LOOP_ENDED = "loop ended early"
    NEVER_CALLED = "never called autotune"
    # The script does not take a setting from its configuration.
    SETTING_IGNORED = "setting ignored"
    # With these settings an epoch holds some samples more than once, or others not at all.
    REPEATED_DATA = "repeated data"
    # Nobody can tell how many samples a batch holds.
    NOT_COUNTABLE = "samples not countable"
    # Two processes that say they are the same rank.
    RANKS_UNCLEAR = "ranks unclear"
    INTERRUPTED = "interrupted"

    @property
    def is_of_device(self) -> bool:
        """Whether it was a GPU's memory that ran out, or nearly did."""
        return self in (FailureCause.OUT_OF_DEVICE_MEMORY, FailureCause.NO_HEADROOM)

    @property
    def is_exhaustion(self) -> bool:
        """Whether something ran out of which larger batches and more workers need more."""
        return self.is_of_device or self in (
            FailureCause.OUT_OF_MEMORY,
            FailureCause.OUT_OF_SHARED_MEMORY,
            FailureCause.TOO_MANY_FILES,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An expected failure of a trial: the cause, one line about it, and the end of its output.

    Attributes:
        cause: Why there is no result.
        message: One line about it, for people.
        output: The end of what the trial printed.
        setting: The setting whose value is to blame, where the trial itself could tell.
    """

    cause: FailureCause
    message: str
    output: str = ""
    setting: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The figures of one trial, from all its samples.

    Attributes:
        samples_per_s: Sustained throughput in samples.
        units_per_s: Sustained throughput in the script's own units (the objective).
        seconds_per_step: Wall seconds per micro-step.
        seconds_per_optimizer_step: The same per optimizer step, as these were seen; where none
            was, as the configuration has it.
        samples_per_update: Samples per optimizer step, as these were seen; None where none was.
        later_epochs_ratio: Throughput after the first epoch's end ÷ that before it; None where no
            end was seen. Where the two differ, the figures are those of later epochs.
        data_wait_share: Share of the time that the loop waited for the loader, 0 to 1; on a GPU,
            that it had nothing to do meanwhile.
        cpu_utilisation: CPU seconds of the process tree ÷ (wall seconds x cores it may use).
        cpu_s_per_sample: CPU seconds of the process tree per sample.
        wait_cpu_share: Share of these that the training process used while it waited for its
            workers: spinning threads, mostly. None without workers, where waiting is loading.
        throttled_share: Share of the time of the cores it may use that a cgroup's quota took.
        peak_memory_bytes: Peak memory of the process tree.
        shared_memory_bytes: Most of `/dev/shm` that the trial used.
        device_memory_bytes: Most that torch's allocator took of the GPU that is fullest; None where
            none is used, as for the next two.
        device_memory_share: Most that was taken of that GPU, by whomever, 0 to 1.
        copy_s: Seconds of a step that the loop waits for its batch to be copied to the GPU, where
            that was probed.
        num_memory_retries: Times that its memory ran out, so that the allocator gave back what it
            could and tried again.
        measured_s: Wall seconds inside the counted blocks.
        num_steps: Micro-steps in the counted blocks.
        num_blocks: Blocks measured.
        num_disturbed: Of these, those that something disturbed; they count only if all are.
        warm_up_s: Seconds of uncounted steps at the start.
        settled: Whether the loop stopped getting faster in that time.
        steps_per_epoch: Steps until the data begins again, where the loader tells.
        samples_per_epoch: Samples that an epoch is drawn from, where the loader tells.
        epoch_end_s: What an epoch's end costs beyond an ordinary step; None where none was seen.
        compute_units_per_s: The step's throughput by itself, where it was probed.
        load_units_per_s: The loader's throughput by itself, where it was probed.
        joules_per_sample: Energy of the machine's processors and memory (see `energy.EnergyMeter`)
            and of the GPUs in use (`gpu_meter.GpuMeter`), idle power included: of those of the two
            that are told for every counted block. None where neither is.
        gpu_joules_per_sample: The part of it that the GPUs took; all of it where only they tell.
            None where they do not.
        gpu_utilisation: Share of the time in which kernels ran on the GPUs in use, 0 to 1; None
            where not known.
    """

    samples_per_s: float
    units_per_s: float
    seconds_per_step: float
    seconds_per_optimizer_step: float
    data_wait_share: float
    cpu_utilisation: float
    cpu_s_per_sample: float
    wait_cpu_share: float | None
    throttled_share: float
    peak_memory_bytes: int
    shared_memory_bytes: int
    device_memory_bytes: int | None
    measured_s: float
    num_steps: int
    num_blocks: int
    num_disturbed: int
    warm_up_s: float
    settled: bool
    steps_per_epoch: int | None
    epoch_end_s: float | None
    compute_units_per_s: float | None
    load_units_per_s: float | None
    joules_per_sample: float | None
    samples_per_update: float | None = None
    later_epochs_ratio: float | None = None
    samples_per_epoch: int | None = None
    device_memory_share: float | None = None
    num_memory_retries: int | None = None
    copy_s: float | None = None
    gpu_joules_per_sample: float | None = None
    gpu_utilisation: float | None = None

    @property
    def uses_device(self) -> bool:
        """Whether the training runs on an accelerator."""
        return self.device_memory_bytes is not None


def sustained_share(blocks: Sequence[Block]) -> float:
    """Of the batches that `blocks` took, the share that the loader could deliver for good.

    A full prefetch buffer lets a loader-bound loop run at compute speed for a while. Flow balance
    takes that off: what the loader produced is what was consumed plus the change in the batches
    it holds ready. A buffer that fills shows spare capacity, which earns nothing. Where epochs end
    within the blocks, a buffer cannot outlast them, and there is nothing to take off.

    Source: conservation of flow over an observation (Denning & Buzen 1978, "The Operational
    Analysis of Queueing Network Models").
    """
    num_steps = sum(block.num_steps for block in blocks)
    if any(block.num_epoch_ends for block in blocks):
        return 1.0
    drained = min(0, _ready_change(blocks))
    # At least half a step: a short block may drain everything that it consumed.
    return max(num_steps + drained, 0.5) / num_steps


def _ready_change(blocks: Sequence[Block]) -> int:
    """How the batches that are held ready have changed; of several ranks, where most are gone."""
    by_rank: dict[int, int] = {}
    for use in (use for block in blocks for use in block.ranks):
        by_rank[use.rank] = by_rank.get(use.rank, 0) + use.ready_change
    if by_rank:
        return min(by_rank.values())
    return sum(block.ready_change for block in blocks)


def sustained_error(blocks: Sequence[Block], num_workers: int) -> float:
    """How far off the logarithm of `sustained_share` may be; 0 where nothing was taken off.

    The workers deliver about as many batches at once as there are workers, so that half of these
    may belong to the time before or after.
    """
    num_steps = sum(block.num_steps for block in blocks)
    num_sustained = sustained_share(blocks) * num_steps
    return 0.0 if num_sustained >= num_steps else max(1.0, num_workers / 2) / num_sustained


def counted_blocks(samples: Sequence[Sample]) -> list[Block]:
    """The blocks that count: undisturbed ones, or all where every one was disturbed.

    Where later epochs run at another rate than the first one, only their blocks count.
    """
    first, later = _by_epoch(samples)
    if epochs_differ(_ratio(first, later)):
        return later
    blocks = [block for sample in samples for block in sample.blocks]
    return [block for block in blocks if not block.interference] or blocks


def epochs_differ(later_epochs_ratio: float | None) -> bool:
    """Whether later epochs run at quite another rate than the first one."""
    ratio = later_epochs_ratio
    return ratio is not None and not 1 / _EPOCHS_ALIKE < ratio < _EPOCHS_ALIKE


def _by_epoch(samples: Sequence[Sample]) -> tuple[list[Block], list[Block]]:
    """The undisturbed blocks before the first epoch's end, and those after it.

    The block in which it ends belongs to neither, nor does what comes after a loop has begun anew.
    """
    first: list[Block] = []
    later: list[Block] = []
    has_ended = False
    for sample in samples:
        for block in sample.blocks:
            if not block.interference and not (block.num_epoch_ends and not has_ended):
                (later if has_ended else first).append(block)
            has_ended |= block.num_epoch_ends > 0
        if sample.life_steps is not None:
            break
    return first, later


def _ratio(first: Sequence[Block], later: Sequence[Block]) -> float | None:
    if not first or not later:
        return None
    return statistics.median(block.units_per_s for block in later) / statistics.median(
        block.units_per_s for block in first
    )


def summarise(
    samples: Sequence[Sample],
    config: ThroughputConfig,
    *,
    steps_per_epoch: int | None = None,
    samples_per_epoch: int | None = None,
    steps_per_update: int | None = None,
    probes: Probes | None = None,
) -> Measurement:
    """The figures of one trial of `config`.

    Args:
        samples: At least one. The loop is frozen between them, so that their blocks join up.
        config: What ran.
        steps_per_epoch: Length of the loader, where it has one.
        samples_per_epoch: Samples that an epoch is drawn from, where they are known.
        steps_per_update: Micro-steps of an optimizer step, as far as was seen before; what the
            blocks show is better, unless they were cut before they showed two.
        probes: What probing found, where it was done.
    """
    measured = [block for sample in samples for block in sample.blocks]
    blocks = counted_blocks(samples)
    num_steps = sum(block.num_steps for block in blocks)
    num_samples = sum(block.num_samples for block in blocks)
    elapsed_s = sum(block.duration_s for block in blocks)
    epoch_end_s = _epoch_end_s(blocks, probes)
    duration_s = elapsed_s
    if steps_per_epoch and epoch_end_s is not None:
        # As many ends as belong to so many steps, rather than those that happened to be seen.
        num_seen = sum(block.num_epoch_ends for block in blocks)
        num_missing = num_steps / steps_per_epoch - num_seen
        if config.num_workers:
            # All workers begin an epoch at once: who waits for its first batch has the others for
            # nothing, so that without the wait these could not be counted, either.
            num_missing = max(0.0, num_missing)
        duration_s += num_missing * epoch_end_s
    balance = sustained_share(blocks)
    seconds_per_step = duration_s / (num_steps * balance)
    num_updates = sum(block.num_updates for block in blocks)
    known = steps_per_update or config.gradient_accumulation_steps
    is_cut = num_updates < 2 and num_steps != num_updates * known
    per_update = known if is_cut else num_steps / num_updates
    cpu_s = sum(block.cpu_s for block in blocks)
    capacity_s = sum(block.duration_s * block.capacity_cores for block in blocks)
    settling = next((sample.settling for sample in samples if sample.settling), None)
    device = fullest_device(samples)
    num_retries = [memory.num_retries for sample in samples for memory in sample.devices]
    gpu_joules = _per_sample(blocks, [block.gpu_energy_j for block in blocks])
    wait_cpu_share = sum(block.wait_cpu_s for block in blocks) / cpu_s if cpu_s else 0.0
    return Measurement(
        samples_per_s=num_samples * balance / duration_s,
        units_per_s=sum(block.num_units for block in blocks) * balance / duration_s,
        seconds_per_step=seconds_per_step,
        seconds_per_optimizer_step=seconds_per_step * per_update,
        data_wait_share=sum(block.lost_s for block in blocks) / elapsed_s,
        cpu_utilisation=cpu_s / capacity_s,
        cpu_s_per_sample=cpu_s / num_samples,
        wait_cpu_share=wait_cpu_share if config.num_workers else None,
        throttled_share=min(1.0, sum(block.throttled_s for block in blocks) / capacity_s),
        peak_memory_bytes=max(sample.memory_bytes for sample in samples),
        shared_memory_bytes=max(sample.shared_memory_bytes for sample in samples),
        device_memory_bytes=device.reserved_bytes if device else None,
        measured_s=elapsed_s,
        num_steps=num_steps,
        num_blocks=len(measured),
        num_disturbed=sum(bool(block.interference) for block in measured),
        warm_up_s=settling.duration_s if settling else 0.0,
        settled=settling.settled if settling else True,
        steps_per_epoch=steps_per_epoch,
        epoch_end_s=epoch_end_s,
        compute_units_per_s=probes.compute_units_per_s if probes else None,
        load_units_per_s=probes.load_units_per_s if probes else None,
        joules_per_sample=_total(
            _per_sample(blocks, [block.energy_j for block in blocks]), gpu_joules
        ),
        samples_per_update=per_update
        * _samples_per_step(blocks, config, steps_per_epoch, samples_per_epoch)
        if num_updates
        else None,
        later_epochs_ratio=_ratio(*_by_epoch(samples)),
        samples_per_epoch=samples_per_epoch,
        device_memory_share=device.used_share if device else None,
        num_memory_retries=max(num_retries, default=None),
        copy_s=probes.copy_s if probes else None,
        gpu_joules_per_sample=gpu_joules,
        gpu_utilisation=_gpu_utilisation(blocks),
    )


def _samples_per_step(
    blocks: Sequence[Block],
    config: ThroughputConfig,
    steps_per_epoch: int | None,
    samples_per_epoch: int | None,
) -> float:
    """Samples in a batch, the mean over whole epochs where the last batch of each is smaller.

    Blocks seldom are whole epochs, and end with a long step rather than with a short one.
    """
    if steps_per_epoch and samples_per_epoch and any(block.num_epoch_ends for block in blocks):
        size = config.batch_size * config.num_ranks
        # Each rank draws from all samples, or from its share of them.
        for number in (samples_per_epoch, samples_per_epoch * config.num_ranks):
            if 0 < number - (steps_per_epoch - 1) * size < size:
                return number / steps_per_epoch
    return sum(b.num_samples for b in blocks) / sum(b.num_steps for b in blocks)


def fullest_device(samples: Sequence[Sample]) -> DeviceMemory | None:
    """The accelerator with the least left at any time; None where none is used."""
    found = [device for sample in samples if (device := sample.fullest_device) is not None]
    return max(found, key=lambda device: device.used_share, default=None)


def _per_sample(blocks: Sequence[Block], joules: Sequence[float | None]) -> float | None:
    told = [used_j for used_j in joules if used_j is not None]
    if len(told) < len(blocks):
        return None
    return sum(told) / sum(block.num_samples for block in blocks)


def _total(*parts: float | None) -> float | None:
    told = [part for part in parts if part is not None]
    return sum(told) if told else None


def _gpu_utilisation(blocks: Sequence[Block]) -> float | None:
    """The mean over time of the blocks that tell."""
    told = [(b.duration_s, b.gpu_utilisation) for b in blocks if b.gpu_utilisation is not None]
    if not told:
        return None
    return sum(duration_s * share for duration_s, share in told) / sum(time_s for time_s, _ in told)


def _epoch_end_s(blocks: Sequence[Block], probes: Probes | None) -> float | None:
    """What an epoch's end costs beyond an ordinary wait: as seen, or else as probed."""
    num_ends = sum(block.num_epoch_ends for block in blocks)
    ends_s = sum(block.epoch_end_s for block in blocks)
    num_others = sum(block.num_steps for block in blocks) - num_ends
    ordinary_s = sum(block.wait_s for block in blocks) - ends_s
    if num_ends:
        found_s = ends_s / num_ends
    elif probes is not None and probes.epoch_start_s is not None:
        found_s = probes.epoch_start_s
    else:
        return None
    return max(0.0, found_s - ordinary_s / num_others if num_others else 0.0)


def figure(value: float, relative_error: float | None = None) -> str:
    """A measured value for people: four significant digits, whole numbers from a thousand on.

    Args:
        value: The value.
        relative_error: Half of its 95 % interval, as a share of it, where that is known.
    """
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text if relative_error is None else f"{text} ±{100 * relative_error:.0f} %"
