"""The loss on held-out text.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mm_rec.data.windows import WindowDataset
from mm_rec.model import MMRec
from mm_rec.training import split_windows

# Independent of the training's batch size, so that the figure is too.
BATCH_SIZE = 16


@torch.no_grad()
def validation_loss(
    model: MMRec,
    dataset: WindowDataset,
    *,
    num_samples: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return the mean loss in nats per token, or None when it was cancelled on the way.

    Args:
        model: Left in training mode.
        dataset: Held-out windows.
        num_samples: At most so many, evenly spread: always the same ones.
        cancelled: Asked between batches.
    """
    chosen = np.linspace(0, len(dataset) - 1, min(num_samples, len(dataset))).round().astype(int)
    total = 0.0
    device = next(model.parameters()).device
    model.eval()
    try:
        for start in range(0, len(chosen), BATCH_SIZE):
            if cancelled():
                return None
            batch = chosen[start : start + BATCH_SIZE].tolist()
            windows_bt = torch.stack([dataset[i] for i in batch])
            inputs_bt, labels_bt = split_windows(windows_bt.to(device))
            loss = model(inputs_bt).cross_entropy(labels_bt)
            total += loss.item() * len(batch)
    finally:
        model.train()
    return total / len(chosen)
