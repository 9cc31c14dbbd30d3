"""A GPU that is none, for machines without one: it takes the place of parts of `torch.cuda`.

Training scripts of tests import it; `use()` is what the first `.to("cuda")` is to a real one.
"""

import os
import time

import torch

GIB = 2**30
TOTAL = 10 * GIB


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError."""


class State:
    """What the driver and the allocator know."""

    def __init__(self):
        # The process that initialised the driver, and whether torch knows of it.
        self.initialised_in = None
        self.is_used = False
        self.allocated = self.peak = 0
        self.others = GIB
        self.retries = 0
        self.busy_until_s = 0.0
        self.synchronised = []


STATE = State()


class Event:
    """Is reached once what was launched before it has run."""

    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        self.at_s = max(time.monotonic(), STATE.busy_until_s)

    def elapsed_time(self, other):
        return 1e3 * (other.at_s - self.at_s)


def ask():
    """Initialise the driver unseen, as torch.cuda.is_available() does."""
    STATE.initialised_in = os.getpid()


def use():
    """Initialise, as the first tensor on the device does."""
    if STATE.initialised_in not in (None, os.getpid()):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with ...")
    STATE.initialised_in = os.getpid()
    STATE.is_used = True


def allocate(num_bytes):
    """Take so much in place of what was taken."""
    use()
    if num_bytes > TOTAL - STATE.others:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    STATE.allocated = num_bytes
    STATE.peak = max(STATE.peak, num_bytes)


def launch(seconds):
    """Work that the device does later; the host goes on."""
    use()
    STATE.busy_until_s = max(STATE.busy_until_s, time.monotonic()) + seconds


def synchronise(device=None):
    STATE.synchronised.append(device)
    time.sleep(max(0.0, STATE.busy_until_s - time.monotonic()))


def memory_stats(device=None):
    return {
        "allocated_bytes.all.peak": STATE.peak,
        "reserved_bytes.all.peak": STATE.peak,
        "reserved_bytes.all.current": STATE.allocated,
        "num_alloc_retries": STATE.retries,
    }


def install(set_attribute=setattr):
    """Put it in the place of torch's own."""
    cuda = torch.cuda
    set_attribute(cuda, "is_initialized", lambda: STATE.is_used)
    set_attribute(cuda, "device_count", lambda: 1)
    set_attribute(cuda, "memory_stats", memory_stats)
    set_attribute(cuda, "mem_get_info", lambda _: (TOTAL - STATE.others - STATE.allocated, TOTAL))
    set_attribute(cuda, "synchronize", synchronise)
    set_attribute(cuda, "Event", Event)
