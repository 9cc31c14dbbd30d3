"""A study that several machines share, on a PostgreSQL server."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys

import pytest

from autotune.config import ThroughputConfig
from autotune.errors import BadInputError
from autotune.study.claims import Owner
from autotune.study.records import Phase
from autotune.study.relative import as_here
from autotune.study.store import find_study, open_study
from autotune.system.machine import this_machine

from .. import postgres
from ..conftest import wait_until
from ..made_up import block_at, record

pytestmark = pytest.mark.skipif(
    postgres.program("initdb") is None and "CI" not in os.environ,
    reason="PostgreSQL's server is not installed",
)
CONFIG = ThroughputConfig(batch_size=4)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with postgres.server(tmp_path_factory.mktemp("postgres")) as found:
        yield found.url


def meet(url, barrier, names):
    """Open a study as soon as all others do."""
    barrier.wait()
    store = open_study(url, "race", fresh=False)
    names.put(store.name)
    store.close()


def test_runs_that_meet_an_empty_database_at_once_all_begin(url):
    context = multiprocessing.get_context("fork")
    barrier, names = context.Barrier(6), context.SimpleQueue()
    runs = [context.Process(target=meet, args=(url, barrier, names)) for _ in range(6)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0] * 6
    # Machines of another kind have a study of their own.
    assert {names.get() for _ in runs} == {f"race@{this_machine().kind}"}


@pytest.fixture
def open_here(url):
    """Opens a study on the server; closes its connections afterwards."""
    opened = []

    def make(name):
        opened.append(open_study(url, name, fresh=False))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def test_what_another_process_runs_is_known_until_that_is_gone(url, open_here):
    store = open_here("claims")
    code = (
        "import os\n"
        "from autotune.config import ThroughputConfig\n"
        "from autotune.study.records import Phase\n"
        "from autotune.study.store import open_study\n"
        f"store = open_study({url!r}, 'claims', fresh=False)\n"
        "assert store.take_seat(1)\n"
        "store.begin(ThroughputConfig(batch_size=4), Phase.SEARCH)\n"
        "print('begun', flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"begun\n"
        assert store.running_elsewhere() == {CONFIG}
        assert not store.take_seat(1)
        store.repair()
        assert store.running_elsewhere() == {CONFIG}
        other.kill()
        other.wait()
    store.repair()
    assert store.running_elsewhere() == frozenset()
    assert wait_until(lambda: store.take_seat(1))
    [found] = store.records()
    assert found.failure.message == "the run was ended"


def test_why_a_server_cannot_be_reached_is_told():
    with pytest.raises(BadInputError, match="cannot be opened: .*[Cc]onnection refused"):
        find_study("postgresql+psycopg://nobody@127.0.0.1:1/nothing", None)


def test_an_owner_of_an_earlier_boot_or_number_is_gone():
    this = Owner.this()
    assert not this.is_gone
    assert dataclasses.replace(this, boot_s=this.boot_s - 100).is_gone
    assert dataclasses.replace(this, began_s=this.began_s - 100).is_gone
    elsewhere = dataclasses.replace(this, host="elsewhere", pid=1)
    assert not elsewhere.is_gone


def test_figures_of_a_slower_machine_are_taken_in_proportion():
    records = [
        record(block_at(100.0), config=CONFIG, phase=Phase.BASELINE, host="here"),
        record(block_at(50.0), config=CONFIG, phase=Phase.BASELINE, host="there"),
        record(block_at(80.0), config=CONFIG, phase=Phase.SEARCH, host="there"),
        record(block_at(70.0), config=CONFIG, phase=Phase.SEARCH, host="unknown"),
    ]
    found = as_here(records, "here")
    assert [one.units_per_s for one in found] == [100.0, 100.0, 160.0, 70.0]
    slow, quick = records[2].samples[0].blocks[0], found[2].samples[0].blocks[0]
    assert quick.duration_s == slow.duration_s / 2
    assert quick.units_per_s == 2 * slow.units_per_s
    assert as_here(records, "new here") == tuple(records)
