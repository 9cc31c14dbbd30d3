"""Updates its parameters by hand, as many tutorials do: no optimizer of torch takes a step."""

import os
import time

import torch
from data import Pictures
from torch import nn
from torch.utils.data import DataLoader

weights = torch.zeros(192, 10, requires_grad=True)
loader = DataLoader(Pictures(), batch_size=16)
for epoch in range(int(os.environ.get("EPOCHS", 3))):
    begin = time.time()
    for pictures, labels in loader:
        loss = nn.functional.cross_entropy(pictures.flatten(1) @ weights, labels)
        loss.backward()
        with torch.no_grad():
            weights -= 0.1 * weights.grad
            weights.grad.zero_()
    print(f"epoch {epoch}: {time.time() - begin:.3f} s, {len(loader)} steps", flush=True)
