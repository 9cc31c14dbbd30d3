"""What `autotune doctor` tells of a command, which it starts and does not tune."""

import json
from pathlib import Path

from ..commands import autotune_run


def test_it_tells_what_would_be_tuned_and_writes_nothing(study):
    done = autotune_run(*study(), "--axis", "batch_size=1,2", command="doctor")
    assert done.returncode == 0, done.stderr
    assert "baseline: batch 4, workers 0" in done.stdout
    assert "trials: forked, first batch after 0." in done.stdout
    assert "tuned: batch_size 1, 2" in done.stdout
    assert "2 configurations" in done.stdout
    assert "estimated time: " in done.stdout
    assert sorted(path.name for path in Path().iterdir()) == ["quick.yaml", "train it.py"]


def test_it_says_why_trials_are_cold_starts(study):
    script = {
        "before": "import threading; threading.Thread(target=time.sleep, args=(60,),"
        " name='poller', daemon=True).start()"
    }
    done = autotune_run(*study(script=script), command="doctor")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("trials: ")]
    assert "cold starts of " in line
    assert "poller" in line


def test_what_fails_only_when_it_is_forked_is_a_reason_for_cold_starts(study):
    script = {
        "before": "parent = os.getpid()",
        "item": "pass",
        "load": ")\n    assert os.getpid() == parent, 'only forked'\n    str(0",
    }
    done = autotune_run(*study(script=script), command="doctor")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("trials: ")]
    assert "cold starts of " in line
    assert "only forked" in line


def test_it_says_what_the_script_does_not_let_one_tune(study):
    # The script has the settings, and goes on with its own.
    ignoring = ")\n    config = autotune.ThroughputConfig(batch_size=4"
    done = autotune_run(*study(script={"load": ignoring}), command="doctor")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("not tuned: ")]
    assert line.startswith("not tuned: batch_size, since trials fail: ")


def test_programs_can_read_it(study):
    done = autotune_run(*study(), "--json", command="doctor")
    found = json.loads(done.stdout)
    assert found["axes"]["batch_size"] == [2, 4, 8]
    assert found["num_configurations"] == 3
    assert found["cold_start_reason"] is None
    assert 0 < found["ready_s"] < found["start_up_s"]
    assert found["units_per_s"] > 0


def test_a_command_that_fails_is_told_in_one_line(study):
    done = autotune_run(*study(script={"step": "raise ValueError('no data')"}), command="doctor")
    assert done.returncode == 1
    assert "ValueError: no data" in done.stderr
    assert "Traceback" not in done.stderr.splitlines()[0]
