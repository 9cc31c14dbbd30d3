"""The memory allocator as a setting."""

import os
import subprocess
import sys

import pytest

from autotune.allocator import (
    ALLOCATORS,
    DEFAULT,
    KEPT,
    allocator_environment,
    apply_allocator,
    is_set_outside,
)
from autotune.config import ThroughputConfig
from autotune.errors import ConfigError

# Blocks above 32 MiB are mapped one by one by default, and cleared anew whenever they are taken.
PROGRAM = """
import ctypes, os, resource, sys
import autotune
from autotune.allocator import apply_allocator
{setup}
size, libc = 64 << 20, ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

def faults():
    block = libc.malloc(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults_of_second_use(setup, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(setup=setup)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's parameters")
def test_kept_memory_is_not_cleared_again():
    default = faults_of_second_use("apply_allocator('default')")
    assert default > 100
    assert faults_of_second_use("apply_allocator('kept')") < 0.1 * default
    load = "autotune.ThroughputConfig(batch_size=1, malloc='kept').apply_to_process()"
    assert faults_of_second_use(load) < 0.1 * default
    # What is started later, or by `autotune exec`.
    assert faults_of_second_use("", **allocator_environment(KEPT)) < 0.1 * default


def test_what_the_environment_keeps_no_setting_gives_back():
    assert is_set_outside({"HOME": "/", **allocator_environment(KEPT)})
    assert not is_set_outside({"MALLOC_MMAP_MAX_": "0"})


def test_the_default_touches_nothing():
    assert allocator_environment(DEFAULT) == {}
    assert ThroughputConfig(batch_size=1).environment == {}
    apply_allocator(DEFAULT)


def test_it_is_told_and_checked():
    assert ThroughputConfig(batch_size=1, malloc=KEPT).summary == "batch 1, workers 0, malloc kept"
    with pytest.raises(ConfigError, match="malloc must be one of default, kept, not 'jemalloc'"):
        ThroughputConfig(batch_size=1, malloc="jemalloc")
    assert ALLOCATORS == ("default", "kept")
