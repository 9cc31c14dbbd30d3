"""Processes and machine of `benchmarks/gpu.py`: started, awaited, ended, and asked."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import IO

START_S = 90.0
# Ending by itself is given so long after an interrupt.
_GRACE_S = 5.0
# Memory of a process that has ended is free after so long at most.
_FREED_S = 3.0
_TAIL_LINES = 40


class RowError(Exception):
    """A row cannot be judged; the message is one line."""


def ask_torch() -> dict[str, object]:
    """What torch says of the GPU, in a process of its own."""
    code = (
        "import json, torch\n"
        "found = {'torch': torch.__version__, 'gpu': None}\n"
        "if torch.cuda.is_available():\n"
        "    facts = torch.cuda.get_device_properties(0)\n"
        "    found |= {'gpu': facts.name, 'memory_bytes': facts.total_memory}\n"
        "    found |= {'num_gpus': torch.cuda.device_count(), 'cuda': torch.version.cuda}\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=START_S
    )
    if done.returncode:
        raise RowError(f"torch: {last_line(done.stderr)}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ask_driver(field: str) -> str | None:
    """A field of the first GPU, as nvidia-smi tells it; None where it does not."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10.0)
        return done.stdout.splitlines()[0].strip()
    return None


def gpu_memory_used_mib(at_most_mib: float | None = None) -> float | None:
    """Memory in use on the first GPU, by all processes; None where that is not told.

    Args:
        at_most_mib: It is waited for a moment until it is down to this.
    """
    end_s = time.monotonic() + _FREED_S
    while True:
        try:
            used_mib = float(ask_driver("memory.used") or "")
        except ValueError:
            return None
        if at_most_mib is None or used_mib <= at_most_mib or time.monotonic() > end_s:
            return used_mib
        time.sleep(0.2)


def has_nvml() -> bool:
    """Whether nvidia-ml-py is installed."""
    return importlib.util.find_spec("pynvml") is not None


def wait_or_end(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """The exit code; None where it had to be ended."""
    try:
        return process.wait(max(0.0, limit_s))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
        end_group(process)
        return None


def end_group(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End a process with its group, and take leave of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def line_within(stream: IO[str], limit_s: float) -> str:
    """The next line; empty where none comes in time, or the stream ends."""
    readable, _, _ = select.select([stream], [], [], max(0.0, limit_s))
    return stream.readline() if readable else ""


def show_tail(name: str, output: str) -> None:
    """Print the end of an output on stderr."""
    lines = output.rstrip().splitlines()[-_TAIL_LINES:]
    print(
        f"--- the end of the output of {name}", *lines, "---", sep="\n", file=sys.stderr, flush=True
    )


def last_line(text: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def one_line(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())
