"""What processes used, by real processes that burn a known amount of CPU time."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from autotune.system.counters import process_cpu_s
from autotune.system.machine import affinity, machine_cpu_s

from ..conftest import stop

pytestmark = pytest.mark.alone

# The head of scripts that look at their own process tree.
HEAD = """
import json, multiprocessing, os, subprocess, sys, time
import psutil
from autotune.system.counters import CounterReader

def burn(seconds, then_s=0.0):
    while time.process_time() < seconds:
        pass
    time.sleep(then_s)

BURNING_CHILD = "import time\\nwhile time.process_time() < 0.3: pass"

if __name__ == "__main__":
    reader = CounterReader(os.getpid())
    reader.find_processes()
    start = reader.read()
"""


def run_in_a_tree(tmp_path, body):
    """Run a script in a session of its own, as trials are; gives what it printed."""
    script = tmp_path / "tree.py"
    script.write_text(HEAD + "\n".join(f"    {line}" for line in body.strip().splitlines()))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_cpu_time_of_the_process_itself_and_of_a_child_that_ended_counts(tmp_path):
    body = """
burn(time.process_time() + 0.2)
subprocess.run([sys.executable, "-c", BURNING_CHILD], check=True)
print(json.dumps(reader.used_between(start, reader.read())))
"""
    found = run_in_a_tree(tmp_path, body)
    # Starting Python costs a little more than what is burned in it.
    assert 0.5 <= found["cpu_s"] < 1.0


def test_cpu_time_of_live_workers_counts_and_stays_counted_when_they_end(tmp_path):
    body = """
workers = [multiprocessing.Process(target=burn, args=(0.3, 60.0)) for _ in range(2)]
for worker in workers:
    worker.start()
used = []
deadline_s = time.monotonic() + 30
while (cpu_s := reader.used_between(start, reader.read())["cpu_s"]) < 0.6:
    assert time.monotonic() < deadline_s, cpu_s
    time.sleep(0.01)
time.sleep(0.1)
alive = reader.used_between(start, reader.read())["cpu_s"]
for worker in workers:
    worker.terminate()
    worker.join()
print(json.dumps([alive, reader.used_between(start, reader.read())["cpu_s"]]))
"""
    alive, ended = run_in_a_tree(tmp_path, body)
    assert 0.6 <= alive < 0.9
    assert ended == pytest.approx(alive, abs=0.1)


def test_cpu_time_of_grandchildren_counts_once_they_are_looked_for(tmp_path):
    body = """
inner = BURNING_CHILD + "\\ntime.sleep(60)"
outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
subprocess.Popen([sys.executable, "-c", outer])
deadline_s = time.monotonic() + 30
while (cpu_s := reader.used_between(start, reader.read())["cpu_s"]) < 0.3:
    assert time.monotonic() < deadline_s, cpu_s
    time.sleep(0.05)
    reader.find_processes()
print(json.dumps(cpu_s), flush=True)
for process in psutil.Process().children(recursive=True):
    process.kill()
"""
    assert 0.3 <= run_in_a_tree(tmp_path, body) < 1.0


def test_what_the_tree_itself_burns_is_not_taken_for_others(tmp_path):
    body = """
burn(time.process_time() + 1.0)
end = reader.read()
print(json.dumps({**reader.used_between(start, end), "busy_s": end.busy_s - start.busy_s,
                  "wall_s": end.at_s - start.at_s}))
"""
    found = run_in_a_tree(tmp_path, body)
    assert found["cpu_s"] == pytest.approx(1.0, abs=0.1)
    # The cores were busy with it, as far as their hundredths of a second can tell.
    assert found["busy_s"] > 0.9
    others_s = found["busy_s"] - found["cpu_s"]
    assert found["other_cpu_s"] == pytest.approx(max(0.0, others_s), abs=0.02)


def test_a_process_outside_the_tree_is_seen_as_another(tmp_path, hogs):
    hogs(len(affinity()))
    body = """
time.sleep(1.0)
end = reader.read()
print(json.dumps({**reader.used_between(start, end), "wall_s": end.at_s - start.at_s}))
"""
    found = run_in_a_tree(tmp_path, body)
    assert found["other_cpu_s"] > 0.5 * len(affinity()) * found["wall_s"]
    assert found["cpu_s"] < 0.1


def test_the_clock_of_a_process_is_the_one_that_it_reads_itself():
    before_s = time.process_time()
    found_s = process_cpu_s(os.getpid())
    assert before_s <= found_s <= time.process_time()


def test_the_clock_of_a_stopped_process_stands_still(hogs):
    (hog,) = hogs(1)
    psutil.Process(hog.pid).suspend()
    time.sleep(0.05)
    found_s = process_cpu_s(hog.pid)
    time.sleep(0.1)
    assert process_cpu_s(hog.pid) == found_s > 0


def test_a_process_that_is_gone_has_no_clock(hogs):
    (hog,) = hogs(1)
    stop(hog)
    with pytest.raises((OSError, psutil.Error)):
        process_cpu_s(hog.pid)


def test_only_the_cores_asked_for_are_looked_at(hogs):
    core = min(affinity())
    (hog,) = hogs(1)
    psutil.Process(hog.pid).cpu_affinity([core])
    before_s, _ = machine_cpu_s(frozenset([core]))
    time.sleep(0.5)
    after_s, _ = machine_cpu_s(frozenset([core]))
    assert 0.3 < after_s - before_s < 1.0
    assert machine_cpu_s(frozenset()) == (0, 0)


def test_workers_of_a_fork_server_keep_their_time_when_they_end(tmp_path):
    body = """
context = multiprocessing.get_context("forkserver")
workers = [context.Process(target=burn, args=(0.3, 0.2)) for _ in range(2)]
for worker in workers:
    worker.start()
used = []
while multiprocessing.active_children():
    used.append(reader.used_between(start, reader.read())["cpu_s"])
    time.sleep(0.01)
used.append(reader.used_between(start, reader.read())["cpu_s"])
print(json.dumps(used))
"""
    used = run_in_a_tree(tmp_path, body)
    assert used == sorted(used)
    assert used[-1] > 0.5


def write_stat(directory, *lines):
    (directory / "proc").mkdir(exist_ok=True)
    text = "\n".join(["cpu  9 9 9 9 9 9 9 9 0 0", *lines, "intr 5", ""])
    (directory / "proc/stat").write_text(text)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat is Linux's")
def test_cores_are_found_by_their_number_though_others_are_offline(tmp_path):
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal guest guest_nice
    write_stat(tmp_path, "cpu0 1 2 3 900 900 4 5 6 1 1", "cpu2 100 0 0 900 0 0 0 7 100 0")
    busy_s, stolen_s = machine_cpu_s(frozenset({2}), tmp_path)
    assert (busy_s, stolen_s) == pytest.approx((100 * tick_s, 7 * tick_s))
    busy_s, stolen_s = machine_cpu_s(frozenset({0, 2}), tmp_path)
    assert (busy_s, stolen_s) == pytest.approx((115 * tick_s, 13 * tick_s))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat is Linux's")
def test_where_a_container_numbers_its_cores_anew_all_of_them_count(tmp_path):
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    write_stat(tmp_path, "cpu0 10 0 0 0 0 0 0 0 0 0", "cpu1 20 0 0 0 0 0 0 0 0 0")
    assert machine_cpu_s(frozenset({8, 9}), tmp_path)[0] == pytest.approx(30 * tick_s)
