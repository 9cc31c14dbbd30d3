"""Train a GPT-like language model in bfloat16, or in float32."""

from __future__ import annotations

import torch
from loop_options import Stopwatch, choose_device, parse_options
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import autotune

NUM_IDS = 8192


class Texts(Dataset[Tensor]):
    """Pieces of a long text, as ids."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.ids = torch.randint(0, NUM_IDS, (2_000_000,))

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Tensor:
        begin = index * 17
        return self.ids[begin : begin + self.length + 1]


class Layer(nn.Module):
    """Causal attention, and a feed-forward network."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same."""
        n, t, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        x = x + self.out(found.transpose(1, 2).reshape(n, t, width))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Next ids from the ids before."""

    def __init__(self, width: int, num_layers: int, length: int) -> None:
        super().__init__()
        self.ids, self.places = nn.Embedding(NUM_IDS, width), nn.Embedding(length, width)
        self.layers = nn.Sequential(*(Layer(width, width // 64) for _ in range(num_layers)))
        self.head = nn.Linear(width, NUM_IDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, T) to the logits (N, T, NUM_IDS)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.layers(self.ids(ids) + self.places(places)))


def tokens(batch: Tensor) -> int:
    """What counts in a batch."""
    return batch.shape[0] * (batch.shape[1] - 1)


def main() -> None:
    """Train."""
    options = parse_options(__doc__)
    torch.manual_seed(0)
    width, num_layers, length = (64, 1, 64) if options.small else (768, 8, 512)
    dataset = Texts(length)
    model = LanguageModel(width, num_layers, length)
    device = choose_device(options)
    if options.cuda_first:
        model.to(device)
    default = autotune.ThroughputConfig(**{"batch_size": 16} | options.settings)
    config = autotune.load_config("best_config.yaml", default=default)

    watch = Stopwatch(options, device, config.num_workers, config.prefetch_factor)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    train = torch.compile(model) if options.compile else model
    in_bfloat16 = device != "cpu" and not options.float32
    loader = config.dataloader(dataset, shuffle=True, drop_last=True)
    for _ in range(options.epochs):
        for batch in autotune.steps(loader, units=tokens):
            ids = batch.to(device, non_blocking=True)
            with torch.autocast(device, torch.bfloat16, enabled=in_bfloat16):
                logits = train(ids[:, :-1])
                loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if watch.is_over(len(batch)):
                return


if __name__ == "__main__":
    main()
