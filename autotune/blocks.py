"""What a trial is asked to time, and what it answers: blocks of consecutive steps."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping

from autotune.errors import BadInputError

# Others, or a hypervisor, disturb a block when they take more cores than this, or than that share
# of those that the trial may use. Threads meet at barriers: one that is descheduled stalls all, so
# the limit is low. A quiet 2-core machine was seen at 0.006 cores in the mean and 0.06 at most.
_OTHERS_CORES, _OTHERS_SHARE = 0.1, 0.02
# The machine's time is counted in ticks, core by core, and rounding may look like others by as much
# as this many ticks, for the square root of the cores: of 640 blocks of 0.25 s on quiet cores that
# were busy for three quarters of the time, 23 showed more than 0.1 cores, and 1 more than allowed.
_TICK_S, _ROUNDING_TICKS = 0.01, 3.0
# They do not disturb where at least this many cores are left over for them.
_SPARE_CORES = 1.0
# Shares of a block's time in which the trial was held up by other means.
_THROTTLED_SHARE, _PRESSURE_SHARE = 0.05, 0.05
# Share of a GPU's time from which on other processes' kernels disturb. NVML tells it in percent of
# a sample of 1/6 s or more, and a desktop that is drawn on the same GPU takes a few.
_GPU_OTHERS_SHARE = 0.05
# Two clocks are read one after the other; a machine sleeps for seconds.
_SUSPENDED_S = 0.1
# What a block counts beside its steps.
_FINITE = (
    *(
        "wait_s",
        "stall_s",
        "epoch_end_s",
        "cpu_s",
        "own_cpu_s",
        "wait_cpu_s",
        "other_cpu_s",
        "stolen_s",
        "throttled_s",
    ),
    *("pressure_s", "suspended_s", "energy_j"),
    *("gpu_energy_j", "gpu_utilisation", "gpu_other_utilisation"),
)


class Interference(enum.StrEnum):
    """What held a block up that is no part of the training."""

    OTHER_PROCESSES = "other processes"
    HYPERVISOR = "time stolen by the hypervisor"
    QUOTA = "a quota used up by others"
    MEMORY = "memory pressure"
    SUSPENSION = "a suspended machine"
    CORES = "a change of the usable cores"
    COMPILATION = "a step that was compiled"
    GPU_PROCESSES = "other processes on the GPU"
    GPU_CLOCKS = "GPU clocks slowed by heat or the power supply"


class BlockMode(enum.StrEnum):
    """What a trial is asked to do while it is timed."""

    TRAIN = "train"
    COMPUTE = "compute"
    LOAD = "load"
    EPOCH = "epoch"
    CHECK = "check"
    REVISIT = "revisit"
    COPY = "copy"
    SWAP = "swap"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockRequest:
    """What a trial is asked to time, without a pause between the blocks.

    Attributes:
        mode: TRAIN feeds the loop from its loader; COMPUTE feeds it the same few batches again
            and again; LOAD takes batches and gives the loop none; EPOCH times one restart of the
            loader, and no block; CHECK times nothing and looks at the parameters; REVISIT loads
            some samples twice; COPY times what
            the loop copies to a GPU in a few steps; SWAP gives it a loader with other settings.
        num_blocks: How many blocks; may be 0, for settling alone.
        min_s: Shortest duration of a block; for EPOCH, the longest that workers are given to come
            to rest before.
        multiple_of: The number of steps in a block is a multiple of this,
        cut_s: unless the block has lasted so long; None for never.
        settle_s: About the longest time spent on uncounted steps until the loop is in its steady
            state; 0 for a loop that is in it already.
        settle_steps: About the most uncounted steps; None for no limit.
        config: For SWAP, the settings to go on with.
    """

    mode: BlockMode = BlockMode.TRAIN
    num_blocks: int = 1
    min_s: float = 0.0
    multiple_of: int = 1
    cut_s: float | None = None
    settle_s: float = 0.0
    settle_steps: int | None = None
    config: Mapping[str, int | bool | str | None] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RankUse:
    """What one of several ranks that train together did in a block.

    Attributes:
        rank: Its number.
        host: Name of its machine.
        duration_s: From its first request for a batch to the end of its last step.
        wait_s: The part of it that it waited for its own loader.
        cpu_s: CPU seconds of its process, without its workers.
        memory_bytes: Memory of its process and workers at the end.
        ready_change: See `Block`.
    """

    rank: int
    host: str
    duration_s: float
    wait_s: float
    cpu_s: float
    memory_bytes: int
    ready_change: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of consecutive training steps, timed in the training process.

    Where several ranks train together, samples, units and CPU seconds are those of all, and times
    are those of the slowest.

    Attributes:
        num_steps: Micro-steps, that is batches handed to the loop.
        num_samples: Samples in them.
        num_units: Units in them, as the script counts them (samples where it does not say).
        num_updates: Optimizer steps in them, as they were seen; 0 where none was.
        duration_s: From the first request for a batch to the end of the last step.
        wait_s: The part of it that the loop waited for the loader.
        stall_s: The part of it that a GPU had nothing to do, since the loop had no batch; None
            where none tells. While work is queued there, the loop may wait at no cost.
        ready_change: Batches that the loader held ready at the end, less those at the start.
        num_epoch_ends: Times that the data ended and began again.
        epoch_end_s: The part of `wait_s` that these took, up to the first batch after each.
        capacity_cores: Cores that the trial may use: affinity and cgroup quotas applied.
        cpu_s: CPU seconds of the trial's process tree, exited loader workers included.
        own_cpu_s: The part of these that the training process used itself.
        wait_cpu_s: CPU seconds of the training process alone while it waited for the loader.
        other_cpu_s: CPU seconds that others used of the trial's capacity.
        stolen_s: Seconds that a hypervisor took from the cores, summed over them.
        throttled_s: Seconds that a cgroup's quota held its processes up, summed over cores.
        pressure_s: Seconds in which some process of the machine or cgroup waited for memory.
        suspended_s: Seconds that the machine slept; they are not part of the duration.
        cores_changed: Whether the trial was given other cores to run on.
        num_page_faults: Pages of memory that the training process took anew from the system.
        num_compiled: Graphs that `torch.compile` compiled meanwhile.
        energy_j: Joules that the machine's processors and memory used; None where it does not tell.
        gpu_energy_j: Joules that the GPUs in use took, their memory, idle power and other processes
            included; None where none is in use, or one does not tell (see `gpu_meter`).
        gpu_utilisation: Share of the time in which kernels ran on them, anybody's, 0 to 1; the mean
            over the GPUs, None where not known.
        gpu_other_utilisation: Share of its time that the GPU most used by other processes ran their
            kernels, as far as that can be told.
        gpu_throttled: Whether heat or the power supply slowed a GPU's clocks.
        ranks: What each rank did, where there are several; of very many, those that waited most.
    """

    num_steps: int
    num_samples: int
    num_units: float
    duration_s: float
    wait_s: float
    stall_s: float | None = None
    num_updates: int = 0
    ready_change: int = 0
    num_epoch_ends: int = 0
    epoch_end_s: float = 0.0
    capacity_cores: float = 1.0
    cpu_s: float = 0.0
    own_cpu_s: float = 0.0
    wait_cpu_s: float = 0.0
    other_cpu_s: float = 0.0
    stolen_s: float = 0.0
    throttled_s: float = 0.0
    pressure_s: float = 0.0
    suspended_s: float = 0.0
    cores_changed: bool = False
    num_page_faults: int = 0
    num_compiled: int = 0
    energy_j: float | None = None
    gpu_energy_j: float | None = None
    gpu_utilisation: float | None = None
    gpu_other_utilisation: float = 0.0
    gpu_throttled: bool = False
    ranks: tuple[RankUse, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_samples", "num_units", "duration_s", "capacity_cores"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise BadInputError(f"{name} must be above 0 and finite, not {value!r}")
        for name in _FINITE:
            if not math.isfinite(getattr(self, name) or 0.0):
                raise BadInputError(f"{name} must be finite, not {getattr(self, name)!r}")

    @property
    def units_per_s(self) -> float:
        """Throughput of the block by itself."""
        return self.num_units / self.duration_s

    @property
    def lost_s(self) -> float:
        """The part of its duration that the loader cost: of a GPU's time, where there is one."""
        return self.wait_s if self.stall_s is None else min(self.stall_s, self.duration_s)

    @property
    def interference(self) -> tuple[Interference, ...]:
        """What disturbed the block; nothing where its figures can be trusted."""
        others = self.other_cpu_s / self.duration_s
        own = self.cpu_s / self.duration_s
        rounding_s = _ROUNDING_TICKS * _TICK_S * math.sqrt(self.capacity_cores)
        limit = max(
            _OTHERS_CORES, _OTHERS_SHARE * self.capacity_cores, rounding_s / self.duration_s
        )
        crowded = self.capacity_cores - own - others < _SPARE_CORES
        throttled = self.throttled_s > _THROTTLED_SHARE * self.duration_s
        found = {
            Interference.OTHER_PROCESSES: others > limit and crowded,
            Interference.HYPERVISOR: self.stolen_s > limit * self.duration_s,
            # A quota that the trial itself uses up throttles it in training too.
            Interference.QUOTA: throttled and others > limit,
            Interference.MEMORY: self.pressure_s > _PRESSURE_SHARE * self.duration_s,
            Interference.SUSPENSION: self.suspended_s > _SUSPENDED_S,
            Interference.CORES: self.cores_changed,
            Interference.COMPILATION: self.num_compiled > 0,
            Interference.GPU_PROCESSES: self.gpu_other_utilisation > _GPU_OTHERS_SHARE,
            Interference.GPU_CLOCKS: self.gpu_throttled,
        }
        return tuple(cause for cause, applies in found.items() if applies)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """The steps before the first block, which are not counted.

    Attributes:
        num_steps: How many.
        duration_s: What they took, the first step included.
        step_s: Seconds per step in the last of them.
        settled: Whether the loop stopped getting faster within the time given.
        num_discarded: Batches thrown away because more were ready than would be in steady state.
        num_compiled: Graphs that `torch.compile` compiled meanwhile.
        steps_per_update: Micro-steps to an optimizer step; None where fewer than two were seen.
    """

    num_steps: int
    duration_s: float
    step_s: float
    settled: bool
    num_discarded: int = 0
    num_compiled: int = 0
    steps_per_update: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Memory of one accelerator, as a trial's training process saw it.

    Attributes:
        device: Its number in that process.
        allocated_bytes: Most that tensors took.
        reserved_bytes: Most that torch's allocator took for them.
        used_bytes: Most that was taken of the device, by whomever: contexts, libraries and other
            processes included.
        total_bytes: All that it has.
        num_retries: Times that the allocator found nothing free, gave back what it could, and tried
            again; each stalls the device.
    """

    device: int
    allocated_bytes: int
    reserved_bytes: int
    used_bytes: int
    total_bytes: int
    num_retries: int = 0

    @property
    def used_share(self) -> float:
        """Share of the device that was taken, 0 to 1."""
        return self.used_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def others_bytes(self) -> int:
        """What was taken beside that which torch's allocator took."""
        return max(0, self.used_bytes - self.reserved_bytes)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a trial answered to one request, and the memory that it held then.

    Attributes:
        blocks: Consecutive blocks.
        at_s: Unix time at which it was asked for.
        settling: The uncounted steps before them, where the request asked for settling.
        memory_bytes: Peak memory of the process tree so far (see `trials.memory`).
        shared_memory_bytes: Of `/dev/shm`, what is used beyond what was at the trial's start.
        devices: Memory of each accelerator in use.
        life_steps: Where the loop ended meanwhile and gives no more blocks, the batches that it
            was given from its start; else None.
    """

    blocks: tuple[Block, ...]
    at_s: float = 0.0
    settling: Settling | None = None
    memory_bytes: int = 0
    shared_memory_bytes: int = 0
    devices: tuple[DeviceMemory, ...] = ()
    life_steps: int | None = None

    @property
    def disturbed(self) -> bool:
        """Whether any of its blocks was disturbed."""
        return any(block.interference for block in self.blocks)

    @property
    def fullest_device(self) -> DeviceMemory | None:
        """The accelerator with the least left; None where none is used."""
        return max(self.devices, key=lambda device: device.used_share, default=None)


# Loading counts as faster the second time from this factor on: what lies in a processor's cache by
# then does not reach it.
_FASTER_AGAIN = 3.0
# What is read from files for each sample by the way, in bytes.
_READ_BY_THE_WAY = 4096


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Revisit:
    """What it took to load samples for the first time, and again.

    Attributes:
        num_samples: How many.
        first_s: Seconds for one, the first time; the median.
        again_s: The same when each was loaded again.
        first_read_bytes: Read from files meanwhile, all samples together.
        again_read_bytes: The same the second time.
    """

    num_samples: int
    first_s: float
    again_s: float
    first_read_bytes: int
    again_read_bytes: int

    @property
    def is_faster(self) -> bool:
        """Whether loading is much faster the second time."""
        return self.first_s > _FASTER_AGAIN * self.again_s

    @property
    def is_kept(self) -> bool:
        """Whether that is since the dataset keeps what it has loaded.

        Otherwise it reads the same files again, and finds them in the system's cache.
        """
        by_the_way = _READ_BY_THE_WAY * self.num_samples
        reads_again = self.again_read_bytes > max(by_the_way, 0.5 * self.first_read_bytes)
        return self.is_faster and not reads_again


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopFacts:
    """What a trial says of the training loop that it found, before anything is timed.

    Attributes:
        unit: Name of the unit that the script counts; None for samples.
        steps_per_epoch: Batches in an epoch, where the loader tells.
        samples_per_epoch: Samples that the loader draws an epoch from, whatever the batch size;
            None where it does not tell.
        steps_per_update: Micro-steps up to the first optimizer step; None where no optimizer took
            a step.
        num_parameters: Numbers that its optimizers learn; None as above.
        fixed: Settings that this loop does not take from its configuration, each with the reason:
            `{"batch_size": "the loader has a batch_sampler of its own"}`.
        notes: Sentences for the user.
        swappable: Whether its loader can be given other workers while it runs.
        lockstep: Whether the ranks can take batches only together, so that neither step nor loader
            can be timed by itself.
    """

    unit: str | None = None
    steps_per_epoch: int | None = None
    samples_per_epoch: int | None = None
    steps_per_update: int | None = None
    num_parameters: int | None = None
    fixed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    swappable: bool = False
    lockstep: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """The two halves of a loop, each by itself, and the cost of an epoch's end.

    Attributes:
        compute_units_per_s: Throughput of the step when a batch costs nothing; None where it was
            not timed.
        load_units_per_s: The same of the loader when the step costs nothing.
        epoch_start_s: From asking for a new epoch to its first batch; None where the data cannot
            be read again.
        copy_s: Seconds of a step in which the loop waits for its batch to be copied to a GPU; None
            without one.
    """

    compute_units_per_s: float | None = None
    load_units_per_s: float | None = None
    epoch_start_s: float | None = None
    copy_s: float | None = None
