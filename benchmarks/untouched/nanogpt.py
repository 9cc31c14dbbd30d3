"""In the style of nanoGPT: batches are cut from one array, and there is no DataLoader."""

import torch
from torch import nn

data = torch.randint(0, 64, (10_000,))
block_size, batch_size, max_iters = 16, 8, 2000


def get_batch():
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([data[i : i + block_size] for i in ix])
    y = torch.stack([data[i + 1 : i + 1 + block_size] for i in ix])
    return x, y


model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 64))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
iter_num = 0
X, Y = get_batch()
while True:
    logits = model(X)
    X, Y = get_batch()
    loss = nn.functional.cross_entropy(logits.view(-1, 64), Y.view(-1))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    if iter_num > max_iters:
        break
