"""What else uses the cores: real processes that do, and looks that were made up."""

import os

import psutil
import pytest

from autotune.system import load as neighbours
from autotune.system.load import Load, Neighbour, QuietKeeper, look_at_load
from autotune.system.machine import affinity

from ..conftest import stop

pytestmark = pytest.mark.alone

QUIET = Load(cores=0.01, capacity_cores=2.0, neighbours=())
NEIGHBOUR = Neighbour(pid=7, command="make all", cores=1.2)
BUSY = Load(cores=1.2, capacity_cores=2.0, neighbours=(NEIGHBOUR,))


@pytest.fixture
def looks(monkeypatch):
    """Makes the looks of a keeper up; gives those that it has not had."""

    def script(*loads):
        left = list(loads)
        monkeypatch.setattr(neighbours, "look_at_load", lambda: left.pop(0))
        return left

    return script


def test_a_busy_process_is_named(hogs):
    (hog,) = hogs(1)
    load = look_at_load()
    found = {neighbour.pid: neighbour for neighbour in load.neighbours}
    assert "-c while True: pass" in found[hog.pid].command
    assert found[hog.pid].cores > 0.3
    assert load.cores > 0.3
    assert not load.is_quiet
    assert f"(process {hog.pid}, " in str(load)


def test_one_that_sleeps_is_not_named_nor_is_this_process(hogs):
    (hog,) = hogs(1)
    psutil.Process(hog.pid).suspend()
    end_s = psutil.Process().cpu_times().user + 0.05
    while psutil.Process().cpu_times().user < end_s:
        pass
    assert not {hog.pid, os.getpid()} & {neighbour.pid for neighbour in look_at_load().neighbours}


def test_a_hog_is_waited_for_at_most_as_long_as_is_allowed(hogs):
    processes = hogs(len(affinity()))
    keeper = QuietKeeper(0.6)
    assert not keeper.wait()
    assert 0.6 <= keeper.waited_s < 3
    assert keeper.last_load.is_too_high
    assert {process.pid for process in processes} <= {
        neighbour.pid for neighbour in keeper.last_load.neighbours
    }
    # The time is spent: another look, and no more.
    assert not keeper.wait()
    assert keeper.waited_s < 4


def test_when_the_hog_is_gone_the_machine_is_quiet(hogs):
    for hog in hogs(len(affinity())):
        stop(hog)
    if not QuietKeeper(60.0).wait():
        # Unless somebody else is busy, as another tool must find too.
        assert psutil.cpu_percent(2.0) > 4.0
        pytest.skip("the machine is never quiet")


def test_two_quiet_looks_in_a_row_are_wanted(looks):
    left = looks(BUSY, QUIET, BUSY, QUIET, QUIET, BUSY)
    keeper = QuietKeeper(10.0)
    assert keeper.wait()
    assert left == [BUSY]
    assert keeper.last_load == BUSY


def test_a_quiet_machine_has_nobody_to_name(looks):
    looks(QUIET, QUIET)
    keeper = QuietKeeper(10.0)
    assert keeper.wait()
    assert keeper.last_load is None


def test_without_time_to_wait_there_is_one_look(looks):
    left = looks(BUSY, QUIET)
    assert not QuietKeeper(0.0).wait()
    assert left == [QUIET]


def test_a_quiet_look_is_followed_by_another_though_no_time_is_left(looks):
    looks(QUIET, QUIET)
    assert QuietKeeper(0.0).wait()
    looks(QUIET, BUSY)
    assert not QuietKeeper(0.0).wait()


@pytest.mark.parametrize(
    ("cores", "capacity_cores", "quiet", "too_high"),
    [
        (0.05, 2.0, True, False),
        (0.2, 2.0, False, False),
        (0.6, 2.0, False, True),
        (0.6, 64.0, True, False),
        (2.0, 64.0, False, False),
        (7.0, 64.0, False, True),
    ],
)
def test_how_much_is_quiet_and_too_much_depends_on_the_cores(
    cores, capacity_cores, quiet, too_high
):
    load = Load(cores=cores, capacity_cores=capacity_cores, neighbours=())
    assert (load.is_quiet, load.is_too_high) == (quiet, too_high)


def test_a_load_says_who_it_is_or_that_nobody_is_to_be_seen():
    assert str(BUSY) == (
        "1.2 of 2 cores are used by other processes: make all (process 7, 1.2 cores)"
    )
    assert "none is to be seen from here" in str(Load(cores=1.2, capacity_cores=2, neighbours=()))


def test_commands_are_shown_on_one_short_line():
    shown = neighbours._command(os.getpid())
    assert shown.isprintable()
    assert len(shown) <= 60
    assert neighbours._command(2**22 + 1) == "a process"


def test_however_often_waiting_was_in_vain_a_quiet_machine_is_found_quiet(looks):
    looks(*[BUSY] * 200, QUIET, QUIET)
    keeper = QuietKeeper(0.0)
    for _ in range(200):
        assert not keeper.wait()
    assert keeper.wait()
