"""What the message of a failure says: the user's own exception, and the remedy if it is known."""

import pytest

from autotune.measurement import FailureCause
from autotune.trials.failures import describe_exception, describe_exit
from autotune.trials.trial import read_tail

IN_WORKER = """Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "torch/utils/data/_utils/worker.py", line 349, in _worker_loop
    data = fetcher.fetch(index)
           ^^^^^^^^^^^^^^^^^^^^
  File "train.py", line 7, in __getitem__
    raise ValueError("no such image")
"""
CHAINED = """KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 9, in __getitem__
    raise ValueError("no such image") from None
"""
LOCAL = "Can't pickle local object 'main.<locals>.<lambda>'"
SPAWN = 'File "multiprocessing/popen_spawn_posix.py", line 32, in __init__'
NO_GUARD = """RuntimeError:
        An attempt has been made to start a new process before the
        current process has finished its bootstrapping phase.
"""


def message(name, detail, output=""):
    return describe_exception(name, detail, output, oom_killed=False).message


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("ValueError: no such image\n", "ValueError: no such image"),
        ("images.BadImage: no such image\nsecond line\n", "images.BadImage: no such image"),
        ("RuntimeError: sizes differ:\n    3 and 4\n", "RuntimeError: sizes differ: 3 and 4"),
        ("AssertionError\n", "AssertionError"),
        (CHAINED + "ValueError: no such image\n", "ValueError: no such image"),
    ],
)
def test_the_message_is_what_the_loader_worker_raised(raised, told):
    assert message("ValueError", IN_WORKER + raised) == f"{told} (in a loader worker)"


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ("", "ValueError"),
        ("no such image\nand more", "ValueError: no such image"),
        (
            "Error(s) in loading:\n\n\tsize mismatch",
            "ValueError: Error(s) in loading: size mismatch",
        ),
    ],
)
def test_the_message_of_any_other_exception_is_its_first_line(detail, told):
    assert message("ValueError", detail) == told


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("AttributeError", LOCAL),
        ("AttributeError", "Can't get local object 'main.<locals>.<lambda>'"),
        ("TypeError", "cannot pickle '_thread.lock' object"),
        ("PicklingError", "Can't pickle <function <lambda> at 0x7f>: attribute lookup failed"),
    ],
)
def test_what_cannot_be_pickled_for_workers_is_told_with_the_remedy(name, detail, method):
    told = message(name, detail, SPAWN.replace("spawn", method))
    assert told.startswith(f"{name}: {detail} (the start method {method} pickles the dataset")
    assert "num_workers > 0 needs" in told


def test_pickling_that_has_nothing_to_do_with_workers_has_no_such_remedy():
    assert message("AttributeError", LOCAL) == f"AttributeError: {LOCAL}"


def test_a_missing_main_guard_is_named():
    exited = message("RuntimeError", "DataLoader worker (pid(s) 3) exited unexpectedly", NO_GUARD)
    assert '`if __name__ == "__main__":`' in exited
    ended = describe_exit(1, NO_GUARD, oom_killed=False)
    assert ended.message == exited
    assert ended.cause is FailureCause.CRASHED


def test_a_rank_that_torchrun_names_is_named():
    output = """
Root Cause (first observed failure):
[0]:
  time      : 2026-11-27_15:02:44
  host      : vm
  rank      : 3 (local_rank: 1)
  exitcode  : -9 (pid: 7324)
  error_file: <N/A>
"""
    found = describe_exit(1, output, oom_killed=False)
    assert found.cause is FailureCause.KILLED
    assert found.message == "rank 3 ended by signal SIGKILL"
    assert found.output == output


def test_a_connection_that_another_rank_broke_is_not_the_settings_fault():
    text = (
        "[/x/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer."
    )
    found = describe_exception("RuntimeError", text, "", oom_killed=False)
    assert found.cause is FailureCause.KILLED
    assert found.message == "another rank of the job is gone (Connection reset by peer)"


def test_frames_that_import_a_module_are_left_out_of_what_is_shown(tmp_path):
    output = tmp_path / "output"
    output.write_text(
        '  File "<frozen importlib._bootstrap>", line 1176 in _find_and_load\n'
        '  File "train.py", line 3 in <module>\n'
    )
    assert read_tail(output).strip() == 'File "train.py", line 3 in <module>'
