"""What the training scripts of `benchmarks/gpu.py` have in common: options, and a stopwatch.

One of them must not have heard of autotune: nothing here imports it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

# The steps before this share of the time, and at least so many steps, are warm-up.
_WARM_UP_SHARE, _LEAST_WARM_UP_S, _WARM_UP_STEPS = 0.2, 1.0, 5


def parse_options(description: str | None) -> argparse.Namespace:
    """The options of a training script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--settings", type=json.loads, default={}, help="other settings, as JSON")
    parser.add_argument("--small", action="store_true", help="a smaller model, for a CPU")
    parser.add_argument("--float32", action="store_true", help="compute in float32")
    parser.add_argument("--backend", default="gloo", help="of torch.distributed")
    parser.add_argument("--compile", action="store_true", help="compile the model")
    parser.add_argument(
        "--check-first",
        action="store_true",
        help="call torch.cuda.is_available() before load_config",
    )
    parser.add_argument(
        "--cuda-first", action="store_true", help="put the model on the device before load_config"
    )
    parser.add_argument(
        "--seconds", type=float, help="train so long after the warm-up, and say how fast"
    )
    parser.add_argument("--wait", action="store_true", help="wait for a line before training")
    parser.add_argument("--sample-mib", type=float, default=64.0, help="activations of a sample")
    return parser.parse_args()


def choose_device(options: argparse.Namespace) -> str:
    """The device to train on; asks for a GPU only where that is wanted."""
    if options.check_first and not torch.cuda.is_available():
        return "cpu"
    return str(options.device)


class Stopwatch:
    """Measures ordinary training: samples per second after a warm-up.

    Args:
        options: With `wait`, a line is awaited on stdin here. Without `seconds`, nothing is timed.
        device: Is waited for where the time is read, and never between.
        num_workers: Of the loader. Batches of workers come in turn and in bursts: it is measured
            from one turn to another.
        prefetch_factor: Of the loader. What was prefetched before the first step is not timed.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        device: str,
        num_workers: int,
        prefetch_factor: int | None,
    ) -> None:
        self._turn = max(1, num_workers)
        self._warm_up_steps = max(_WARM_UP_STEPS, num_workers * (prefetch_factor or 0))
        self._seconds: float | None = options.seconds
        self._on_gpu = device.startswith("cuda")
        self._num_steps = self._num_samples = self._first_counted = 0
        self._first_s = self._start_s = 0.0
        if options.wait:
            print("ready", flush=True)
            sys.stdin.readline()
        self._asked_s = time.perf_counter()

    def is_over(self, num_samples: int) -> bool:
        """Count a step that is done; whether the training has lasted long enough."""
        if self._seconds is None:
            return False
        now_s = time.perf_counter()
        if not self._num_steps:
            self._first_s = now_s
        self._num_steps += 1
        if self._start_s:
            self._num_samples += num_samples
            is_whole = (self._num_steps - self._first_counted) % self._turn == 0
            if now_s - self._start_s < self._seconds or not is_whole:
                return False
            self._print()
            return True
        warm_up_s = max(_LEAST_WARM_UP_S, _WARM_UP_SHARE * self._seconds)
        if self._num_steps > self._warm_up_steps and now_s - self._first_s > warm_up_s:
            self._wait_for_device()
            self._start_s = time.perf_counter()
            self._first_counted = self._num_steps
        return False

    def _print(self) -> None:
        self._wait_for_device()
        duration_s = time.perf_counter() - self._start_s
        found = {
            "samples_per_s": self._num_samples / duration_s,
            "measured_s": duration_s,
            "first_step_s": self._first_s - self._asked_s,
            "num_steps": self._num_steps,
            "memory_bytes": torch.cuda.max_memory_reserved() if self._on_gpu else None,
        }
        print(json.dumps(found), flush=True)

    def _wait_for_device(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
