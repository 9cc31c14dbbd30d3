"""Start method spawn, and no main guard: each worker runs the whole script again.

Follows: pytorch/pytorch#12831, #93563.
Right: workers are ruled out, and one line names the missing guard. Nothing hangs or is left.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2

torch.manual_seed(0)
torch.multiprocessing.set_start_method("spawn", force=True)
data = TensorDataset(torch.randn(4000, 64), torch.randint(0, 10, (4000,)))
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
default = autotune.ThroughputConfig(batch_size=32)
config = autotune.load_config("best_config.yaml", default=default)
loader = config.dataloader(data, shuffle=True)
for epoch in range(EPOCHS):
    for x, y in autotune.steps(loader):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("epoch", epoch, loss.item())
