"""The networks that MM-Rec is measured against, in the size that is asked for.

Shapes: B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6
SIZE_TOLERANCE = 0.05


class CharLSTM(nn.Module):
    """Embedding, stacked LSTM, norm, and a head tied to the embedding."""

    def __init__(self, *, vocab_size: int, width: int, num_layers: int = 2) -> None:
        """Make and initialise a model of the given sizes."""
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, width, num_layers, batch_first=True)
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self._initialise()

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """Return the scores of the next token, [B, T, V]."""
        # The embedding is small because it is the head as well; the LSTM wants inputs around 1.
        x_btd = self.embedding(tokens_bt) * math.sqrt(self.width)
        h_btd, _ = self.lstm(x_btd)
        return functional.linear(self.norm(h_btd), self.embedding.weight)

    def _initialise(self) -> None:
        """Orthogonal recurrent weights, Glorot input weights, forget gates open.

        Source: Jozefowicz et al., "An empirical exploration of recurrent network architectures"
        (2015), for the bias of 1 on the forget gate.
        """
        nn.init.normal_(self.embedding.weight, std=1.0 / math.sqrt(self.width))
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
                # There are two biases per gate, which are added up.
                if name.startswith("bias_ih"):
                    with torch.no_grad():
                        parameter[self.width : 2 * self.width] = 1.0
            else:
                fill = nn.init.orthogonal_ if "_hh_" in name else nn.init.xavier_uniform_
                for gate in parameter.chunk(4):
                    fill(gate)


class _TransformerBlock(nn.Module):
    """Causal attention with rotary positions, then a feed-forward network, both pre-norm."""

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, x_btd: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in self.project(self.norm(x_btd)).chunk(3, dim=-1)
        )
        read = functional.scaled_dot_product_attention(
            _rotate(q, rotation), _rotate(k, rotation), v, is_causal=True
        )
        y_btd = x_btd + self.output(read.transpose(1, 2).flatten(2))
        out_btd: Tensor = y_btd + self.ffn(self.ffn_norm(y_btd))
        return out_btd


def _rotation(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, [T, width / 2] each.

    Source: Su et al., "RoFormer" (2021), with its base of 10,000.
    """
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(length), frequencies)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class CharTransformer(nn.Module):
    """A decoder-only Transformer: embedding, blocks, norm, head tied to the embedding."""

    def __init__(
        self, *, vocab_size: int, width: int, num_layers: int = 4, num_heads: int = 4
    ) -> None:
        """Make and initialise a model of the given sizes; `width` / `num_heads` must be even."""
        super().__init__()
        self.width = width
        self.head_width = width // num_heads
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(
            _TransformerBlock(width=width, num_heads=num_heads) for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self._initialise(num_layers)

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """Return the scores of the next token, [B, T, V]."""
        # Small as the embedding is, the first branches would drown it: 2.49 in place of 2.99 bits
        # per byte in the search of learning rates (benchmarks/language_models.py), at 0.003.
        x_btd = self.embedding(tokens_bt) * math.sqrt(self.width)
        rotation = _rotation(tokens_bt.shape[1], self.head_width)
        for block in self.blocks:
            x_btd = block(x_btd, rotation)
        return functional.linear(self.norm(x_btd), self.embedding.weight)

    def _initialise(self, num_layers: int) -> None:
        """As MM-Rec does it: by width, and residual branches by depth (the GPT-2 report, 2.3)."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim == 2:
                is_residual = name.endswith(("output.weight", "ffn.2.weight"))
                scale = 1.0 / math.sqrt(2 * num_layers) if is_residual else 1.0
                nn.init.normal_(parameter, std=scale / math.sqrt(parameter.shape[1]))


def sized(make: Callable[[int], nn.Module], *, num_parameters: int, step: int = 8) -> nn.Module:
    """Return `make(width)` with the width that comes closest to a number of parameters.

    Args:
        make: Gives a model of a width that is a multiple of `step`; larger with the width.
        num_parameters: The size to come close to.
        step: Widths that are multiples of 8 fill the vector units.

    Raises:
        ValueError: The closest width is off by more than `SIZE_TOLERANCE`.
    """
    sizes: dict[int, int] = {}
    with torch.device("meta"):
        while not sizes or max(sizes.values()) < num_parameters:
            width = step * (len(sizes) + 1)
            sizes[width] = count_parameters(make(width))
    width = min(sizes, key=lambda width: abs(sizes[width] - num_parameters))
    if abs(sizes[width] / num_parameters - 1.0) > SIZE_TOLERANCE:
        raise ValueError(f"no width comes close to {num_parameters} parameters: {sizes}")
    return make(width)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained values; a tied head counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
