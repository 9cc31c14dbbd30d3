"""What the garbage collector takes of making small objects, in any Python: `python FILE`.

It needs nothing but Python, so that versions can be compared that torch is not installed in. A heap
stands for that of torch, and batches are lists of dictionaries, as a collating loader makes them.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from typing import Any

NUM_ALIVE, BATCH_SIZE, NUM_BATCHES, NUM_TURNS = 400_000, 4096, 40, 5
THRESHOLDS = (50_000, 50, 1000)


def batch_cpu_s() -> float:
    """CPU seconds that a batch takes; two of them are alive at a time, as in a loop."""
    start_s = time.process_time()
    for _ in range(NUM_BATCHES):
        batch = [{"ids": [n], "values": [n], "label": [n]} for n in range(BATCH_SIZE)]
        collated = {key: [sample[key] for sample in batch] for key in batch[0]}
    assert len(collated["ids"]) == BATCH_SIZE
    return (time.process_time() - start_s) / NUM_BATCHES


def main() -> None:
    alive: list[Any] = [[n] for n in range(NUM_ALIVE)]
    thresholds = gc.get_threshold()
    found: dict[str, list[float]] = {"default": [], "frozen": [], "raised": []}
    for _ in range(NUM_TURNS):
        for name, values in found.items():
            gc.collect()
            if name == "frozen":
                gc.freeze()
            gc.set_threshold(*(THRESHOLDS if name == "raised" else thresholds))
            values.append(batch_cpu_s())
            gc.set_threshold(*thresholds)
            gc.unfreeze()
    plain_s = statistics.median(found["default"])
    ratios = [f"{name} {plain_s / statistics.median(found[name]):.2f}x" for name in found]
    print(f"Python {platform.python_version()}, thresholds {thresholds}: {', '.join(ratios)}")
    assert len(alive) == NUM_ALIVE


if __name__ == "__main__":
    main()
