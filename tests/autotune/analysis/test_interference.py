"""What disturbed a study: told, and refused where it was too much."""

import pytest

from autotune.analysis.interference import (
    check_before_start,
    check_confirmed,
    disturbed_by,
    is_disturbed_throughout,
)
from autotune.errors import BusyMachineError
from autotune.system.load import Load, Neighbour

from ..made_up import block, record

NEIGHBOUR = Neighbour(pid=7, command="make all", cores=1.2)
BUSY = Load(cores=1.2, capacity_cores=2.0, neighbours=(NEIGHBOUR,))
RESTLESS = Load(cores=0.3, capacity_cores=2.0, neighbours=())
QUIET_BLOCK = block()
# Others use more than half a core, and less.
CROWDED, A_LITTLE_CROWDED = block(other_cpu_s=0.9), block(other_cpu_s=0.3)
STOLEN = block(stolen_s=0.2)


class FakeKeeper:
    def __init__(self, *, is_quiet=False, last_load=None):
        self.last_load = last_load
        self._is_quiet = is_quiet

    def wait(self):
        return self._is_quiet


def test_on_a_quiet_machine_there_is_nothing_to_say():
    assert check_before_start(FakeKeeper(is_quiet=True), allow_busy=False) is None
    # What was seen before it became quiet is over.
    calmed = FakeKeeper(is_quiet=True, last_load=BUSY)
    assert check_before_start(calmed, allow_busy=False) is None


def test_a_machine_that_stays_busy_is_refused_and_its_neighbour_named():
    with pytest.raises(BusyMachineError, match=r"too busy .* make all \(process 7, .*allow-busy"):
        check_before_start(FakeKeeper(last_load=BUSY), allow_busy=False)


def test_where_a_machine_may_be_busy_nothing_is_looked_at_and_a_restless_one_is_told():
    assert check_before_start(FakeKeeper(last_load=BUSY), allow_busy=True) is None
    note = check_before_start(FakeKeeper(last_load=RESTLESS), allow_busy=False)
    assert note.startswith("note: 0.3 of 2 cores are used by other processes")


def test_an_answer_from_blocks_that_were_all_badly_disturbed_is_refused():
    runs = [record(CROWDED, CROWDED), record(CROWDED)]
    with pytest.raises(BusyMachineError, match=r"0\.9 of 2 cores .*make all"):
        check_confirmed(runs, FakeKeeper(last_load=BUSY))
    with pytest.raises(BusyMachineError, match="none is to be seen from here"):
        check_confirmed(runs, FakeKeeper())


@pytest.mark.parametrize(
    "runs",
    [
        [record(CROWDED), record(CROWDED, QUIET_BLOCK)],
        [record(A_LITTLE_CROWDED), record(A_LITTLE_CROWDED)],
    ],
)
def test_an_answer_is_given_where_some_blocks_were_quiet_or_the_disturbance_small(runs):
    check_confirmed(runs, FakeKeeper(last_load=BUSY))


def test_an_answer_is_given_where_the_others_rest_whenever_the_training_does():
    check_confirmed([record(CROWDED), record(CROWDED)], FakeKeeper(is_quiet=True, last_load=BUSY))


def test_a_run_is_disturbed_throughout_where_no_block_was_quiet():
    assert is_disturbed_throughout(record(CROWDED, STOLEN))
    assert not is_disturbed_throughout(record(CROWDED, QUIET_BLOCK))


def test_causes_are_told_the_most_frequent_first_and_neighbours_by_name():
    records = [record(STOLEN, STOLEN), record(CROWDED, QUIET_BLOCK)]
    assert disturbed_by(records, FakeKeeper(last_load=BUSY)) == (
        "time stolen by the hypervisor",
        "other processes (make all (process 7, 1.2 cores))",
    )
    assert disturbed_by(records, FakeKeeper())[1] == "other processes"
    assert disturbed_by([record(QUIET_BLOCK)], FakeKeeper(last_load=BUSY)) == ()
