import dataclasses
import os

from autotune.machine import affinity, this_machine, usable_cores


def test_the_cores_are_those_that_this_process_may_run_on():
    assert affinity() == os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(affinity())
    assert this_machine().usable_cores == usable_cores()


def test_the_fingerprint_changes_with_what_matters_and_nothing_else():
    here = this_machine()
    assert dataclasses.replace(here, hostname="elsewhere").fingerprint == here.fingerprint
    assert dataclasses.replace(here, usable_cores=99).fingerprint != here.fingerprint
    assert dataclasses.replace(here, cpu="another").fingerprint != here.fingerprint
    assert dataclasses.replace(here, memory_bytes=2**30).fingerprint != here.fingerprint
