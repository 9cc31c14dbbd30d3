"""Threads that keep a process from being forked are named, with the remedy."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.measurement import StartMode
from autotune.trials.runner import SINGLE_THREADED

CONFIG = ThroughputConfig(batch_size=4)
ONE = "1 thread runs when load_config is called: "


def described(code, *, first=False, **environment):
    """What is said of the threads that some code starts, in a process of its own.

    Or the first line that the code prints.
    """
    text = (
        f"{textwrap.dedent(code)}\n"
        "import time; time.sleep(0.1)\n"
        "from autotune.system.threads import describe_threads\n"
        "print(describe_threads())"
    )
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, **single, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout.splitlines()[0 if first else -1]


def test_where_no_thread_runs_there_is_nothing_to_say():
    assert described("import torch; torch.ones(2) + 1") == "None"


def test_a_thread_is_named_with_its_class_and_the_line_that_started_it(light_script, start_runner):
    before = """
    import threading
    class Ticker(threading.Thread):
        def run(self):
            time.sleep(60)
    Ticker(name="tick", daemon=True).start()
    """
    command = light_script(before=textwrap.indent(textwrap.dedent(before), " " * 4).strip())
    runner = start_runner(command)
    runner.start(CONFIG, StartMode.FORK).close()
    lines = Path(command[1]).read_text().splitlines()
    [line] = [number for number, text in enumerate(lines, 1) if 'name="tick"' in text]
    assert runner.fresh_reason == (
        f"{ONE}tick, a Ticker, started at train it.py:{line} (start it after load_config)"
    )


def test_a_script_that_trains_in_a_thread_is_told_to_call_from_the_main_thread():
    code = """
        import threading
        from autotune.system.threads import describe_threads
        thread = threading.Thread(target=lambda: print(describe_threads()))
        thread.start(); thread.join()
    """
    assert described(code, first=True) == f"{ONE}the main thread (call load_config in it)"


def test_a_thread_that_a_library_starts_is_charged_to_the_line_that_called_it(
    light_script, start_runner
):
    before = (
        "from concurrent.futures import ThreadPoolExecutor; "
        "pool = ThreadPoolExecutor(1); pool.submit(time.sleep, 0)"
    )
    runner = start_runner(light_script(before=before))
    runner.start(CONFIG, StartMode.FORK).close()
    assert f"{ONE}ThreadPoolExecutor-0_0, started at train it.py:" in runner.fresh_reason


def test_nothing_watches_threads_once_a_trial_runs(light_script, start_runner):
    step = "import threading; assert not hasattr(threading.Thread.start, '__wrapped__')"
    with start_runner(light_script(step=step)).start(CONFIG, StartMode.FORK) as trial:
        assert trial.measure(BlockRequest(min_s=0.05), deadline_s=10).blocks


def test_the_writer_of_tensorboard_is_named(tmp_path):
    pytest.importorskip("tensorboard")
    code = f"""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        writer = EventFileWriter({str(tmp_path)!r})
    """
    assert f"{ONE}TensorBoard's writer (make the SummaryWriter after load" in described(code)


@pytest.mark.skipif(sys.platform != "linux", reason="where a thread waits is told by Linux")
@pytest.mark.parametrize(
    ("module", "code", "environment", "said"),
    [
        (
            "numpy",
            "import numpy as np; np.ones((500, 500)) @ np.ones((500, 500))",
            {"OPENBLAS_NUM_THREADS": "2"},
            "BLAS (leave thread counts to load_config)",
        ),
        (
            "torch",
            "import torch; torch.set_num_threads(2); torch.ones(1000000).exp()",
            {},
            "OpenMP (leave thread counts to load_config)",
        ),
        (
            "cv2",
            "import cv2, numpy; cv2.setNumThreads(2); "
            "cv2.GaussianBlur(numpy.ones((2000, 2000), numpy.uint8), (15, 15), 3)",
            {},
            "OpenCV (call cv2.setNumThreads(0) right after importing cv2)",
        ),
    ],
)
def test_native_threads_are_named_by_their_library(module, code, environment, said):
    pytest.importorskip(module)
    assert said in described(code, **environment)


@pytest.mark.parametrize(
    ("module", "code", "environment"),
    [
        (
            "cv2",
            "import cv2, numpy; cv2.setNumThreads(0); "
            "cv2.GaussianBlur(numpy.ones((2000, 2000), numpy.uint8), (15, 15), 3)",
            {},
        ),
    ],
)
def test_the_remedies_remedy(module, code, environment):
    pytest.importorskip(module)
    assert described(code, **environment) == "None"


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ("/usr/lib/libnvidia-ml.so.580", "None"),
        ("/usr/lib/libcuda.so.580", "None"),
        ("/usr/lib/libnccl.so.2", f"{ONE}CUDA (use the GPU after load_config only)"),
    ],
)
def test_threads_of_a_library_that_survives_forks_are_no_obstacle(library, said):
    code = f"""
        import threading
        from autotune.system import threads
        threads.task_ids = lambda: [threading.get_native_id(), -1]
        threads.libraries_of = lambda tasks: {{-1: {library!r}}}
    """
    assert described(code) == said


def test_a_thread_that_ends_while_it_is_looked_at_is_no_obstacle():
    code = """
        import threading
        from autotune.system import threads
        listed = [[threading.get_native_id(), -1], [threading.get_native_id()]]
        threads.task_ids = lambda: listed.pop(0)
        threads.libraries_of = lambda tasks: {task: None for task in tasks}
    """
    assert described(code) == "None"


@pytest.mark.parametrize(
    ("module", "code"),
    [
        (
            "tokenizers",
            """
            from tokenizers import Tokenizer, models, pre_tokenizers
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            use = lambda: tokenizer.encode_batch(["a b"] * 1000)
            """,
        ),
        (
            "pyarrow",
            """
            import pyarrow, pyarrow.parquet
            table = pyarrow.table({"a": list(range(10000)), "b": ["x"] * 10000})
            pyarrow.parquet.write_table(table, "x.parquet")
            use = lambda: pyarrow.parquet.read_table("x.parquet", use_threads=True).to_pandas()
            """,
        ),
        (
            "tqdm",
            """
            import io, tqdm
            use = lambda: list(tqdm.tqdm(range(3), file=io.StringIO()))
            """,
        ),
    ],
)
def test_what_may_be_used_before_is_used_in_a_forked_process(module, code, tmp_path):
    pytest.importorskip(module)
    rest = """
        import os, signal, threading
        from autotune.instrument.fork_server import fork_obstacle
        use()
        threads = len(os.listdir("/proc/self/task"))
        print(threads > 1, fork_obstacle())
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            use()
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code) + textwrap.dedent(rest))
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, **SINGLE_THREADED},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True", "None", "0"], done.stderr
