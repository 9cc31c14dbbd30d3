"""Blocks, samples and trials that nobody measured, for what only computes with them."""

from autotune.blocks import Block, DeviceMemory, Sample, Settling
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, StartMode, summarise
from autotune.study.records import Outcome, Phase, TrialRecord

PLAIN = ThroughputConfig(batch_size=4)
FAILURE = Failure(cause=FailureCause.CRASHED, message="it broke")
SETTLING = Settling(num_steps=3, duration_s=0.5, step_s=0.1, settled=True)


def block(num_steps=10, duration_s=1.0, **changes):
    """A block of batches of 4, on two cores; nothing disturbed it."""
    values = {
        "num_steps": num_steps,
        "num_samples": 4 * num_steps,
        "num_units": 400.0 * num_steps,
        "duration_s": duration_s,
        "wait_s": 0.25 * duration_s,
        "capacity_cores": 2.0,
        "cpu_s": duration_s,
    }
    return Block(**{**values, **changes})


def block_at(units_per_s):
    """A block with that throughput."""
    return block(num_units=units_per_s, num_steps=10, duration_s=1.0)


def sample(*blocks, memory_bytes=100, **changes):
    return Sample(blocks=blocks, memory_bytes=memory_bytes, **changes)


def device(*, number=0, allocated_bytes=1, reserved_bytes=10, used_bytes=20, num_retries=0):
    """A GPU with 100 bytes of memory."""
    return DeviceMemory(
        device=number,
        allocated_bytes=allocated_bytes,
        reserved_bytes=reserved_bytes,
        used_bytes=used_bytes,
        total_bytes=100,
        num_retries=num_retries,
    )


def record(*blocks, config=PLAIN, settling=None, number=0, phase=Phase.SEARCH, **changes):
    """A trial of `config` that had these blocks."""
    samples = (sample(*blocks, settling=settling),)
    return record_of(samples, config=config, number=number, phase=phase, **changes)


def record_of(samples, *, config=PLAIN, number=0, phase=Phase.SEARCH, **changes):
    """A trial of `config` that answered so."""
    samples = tuple(samples)
    values = {"measurement": summarise(samples, config), "samples": samples}
    return TrialRecord(number=number, phase=phase, config=config, **{**values, **changes})


def keep_trial(store, config, rate, phase=Phase.SEARCH):
    """Store a trial of two blocks at that rate in a study."""
    number = store.begin(config, phase)
    num_samples = 10 * config.batch_size
    sizes = {"num_samples": num_samples, "num_units": float(num_samples)}
    steps = block(num_steps=10, duration_s=num_samples / rate, **sizes)
    samples = [sample(steps, steps, settling=SETTLING)]
    store.complete(
        number,
        Outcome(
            measurement=summarise(samples, config),
            samples=samples,
            start_mode=StartMode.FORK,
            start_up_s=0.1,
            duration_s=1.0,
            unit=None,
        ),
    )
