"""Train a deep and narrow MLP on the rows of a table: small operations, many of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from loop_options import Stopwatch, choose_device, parse_options
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import autotune

NUM_COLUMNS, WIDTH, NUM_CLASSES = 64, 128, 10
Batch = tuple[Tensor, Tensor]


class Table(Dataset[Batch]):
    """Rows in memory, a whole batch at a time."""

    def __init__(self) -> None:
        self.rows = torch.randn(400_000, NUM_COLUMNS)
        self.labels = torch.randint(0, NUM_CLASSES, (len(self.rows),))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.rows[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The rows of a batch, in one operation."""
        chosen = torch.as_tensor(indices)
        return self.rows[chosen], self.labels[chosen]


def keep(batch: Batch) -> Batch:
    """Collate what is a batch already."""
    return batch


def make_model(*, small: bool) -> nn.Module:
    """Layers of one width."""
    layers: list[nn.Module] = [nn.Linear(NUM_COLUMNS, WIDTH)]
    for _ in range(3 if small else 12):
        layers += [nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, NUM_CLASSES))


def main() -> None:
    """Train."""
    options = parse_options(__doc__)
    torch.manual_seed(0)
    dataset = Table()
    model = make_model(small=options.small)
    device = choose_device(options)
    if options.cuda_first:
        model.to(device)
    default = autotune.ThroughputConfig(**{"batch_size": 256} | options.settings)
    config = autotune.load_config("best_config.yaml", default=default)

    watch = Stopwatch(options, device, config.num_workers, config.prefetch_factor)
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train = torch.compile(model) if options.compile else model
    loader = config.dataloader(dataset, shuffle=True, drop_last=True, collate_fn=keep)
    for _ in range(options.epochs):
        for rows, labels in autotune.steps(loader):
            logits = train(rows.to(device, non_blocking=True))
            loss = functional.cross_entropy(logits, labels.to(device, non_blocking=True))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if watch.is_over(len(rows)):
                return


if __name__ == "__main__":
    main()
