"""No DataLoader: a generator draws random windows of a text for ever.

Follows: the get_batch of nanoGPT.
Right: batch size and threads are tuned. There are no workers to tune.
"""

import torch

import autotune

MAX_STEPS = 300
BLOCK = 32


def draw(text, batch_size):
    while True:
        starts = torch.randint(len(text) - BLOCK - 1, (batch_size,))
        windows = torch.stack([text[i : i + BLOCK + 1] for i in starts])
        yield windows[:, :-1], windows[:, 1:]


def main():
    torch.manual_seed(0)
    text = torch.randint(0, 64, (100_000,))
    model = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64))
    optimizer = torch.optim.AdamW(model.parameters())
    default = autotune.ThroughputConfig(batch_size=12)
    config = autotune.load_config("best_config.yaml", default=default)
    batches = autotune.steps(draw(text, config.batch_size))
    for step, (x, y) in enumerate(batches, start=1):
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= MAX_STEPS:
            break
    torch.save(model.state_dict(), "ckpt.pt")


if __name__ == "__main__":
    main()
