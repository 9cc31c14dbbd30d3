"""The MM-Rec language model.

Shapes: B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm_rec.config import NORM_EPS, ModelConfig
from mm_rec.layers import Block, LayerState


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What the model carries from one chunk of a text to the next, a value per layer."""

    layers: tuple[LayerState, ...]

    def detach(self) -> State:
        """Return the same state without its history of gradients (truncated backpropagation)."""
        return State(layers=tuple(layer.detach() for layer in self.layers))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Output:
    """What one forward pass gives.

    Attributes:
        hidden_btd: What the head reads.
        head_vd: The head's weight.
        state: State after the last token; pass it in to go on with the same texts.
        aux_loss: The auxiliary loss, mean over the layers; None when its weight is 0.
    """

    hidden_btd: Tensor
    head_vd: Tensor
    state: State
    aux_loss: Tensor | None

    @property
    def logits_btv(self) -> Tensor:
        """Scores of the next token, computed anew at each access."""
        return functional.linear(self.hidden_btd, self.head_vd)

    def cross_entropy(self, labels_bt: Tensor) -> Tensor:
        """Return the mean over B and T, in nats per token.

        The logits never exist as a whole: they would be the largest tensor of a training step,
        and most of its time would go into fetching fresh pages for them.
        """
        return cross_entropy(self.hidden_btd.flatten(0, 1), self.head_vd, labels_bt.flatten())


def cross_entropy(hidden_nd: Tensor, head_vd: Tensor, labels_n: Tensor) -> Tensor:
    """Return the mean cross-entropy of the head's scores, in nats."""
    if not hasattr(functional, "linear_cross_entropy"):
        # torch before 2.13 (the chunked one).
        return functional.cross_entropy(functional.linear(hidden_nd, head_vd), labels_n)
    loss: Tensor = functional.linear_cross_entropy(
        hidden_nd, head_vd, labels_n, options=nn.LinearCrossEntropyOptions()
    )
    return loss


class MMRec(nn.Module):
    """Embedding, blocks, norm, and a head tied to the embedding.

    There is no positional encoding: order comes from the recurrence. The forward pass is
    deterministic but for dropout, and the output at t depends on tokens up to t only.

    Source: MM-Rec (obarlik/mm-rec), implemented from its description.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Make and initialise a model of the given sizes."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, eps=NORM_EPS)
        self._initialise()

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first token of `batch_size` texts."""
        return State(layers=tuple(block.initial_state(batch_size) for block in self._blocks()))

    def forward(self, tokens_bt: Tensor, state: State | None = None) -> Output:
        """Score the next token at every position.

        Args:
            tokens_bt: Token ids, int64.
            state: Where the texts stand; None is the beginning.
        """
        if state is None:
            state = self.initial_state(tokens_bt.shape[0])
        x_btd = self.embedding(tokens_bt)
        layers, aux_losses = [], []
        for block, before in zip(self._blocks(), state.layers, strict=True):
            x_btd, after, aux_loss = block(x_btd, before)
            layers.append(after)
            if aux_loss is not None:
                aux_losses.append(aux_loss)
        return Output(
            hidden_btd=self.norm(x_btd),
            head_vd=self.embedding.weight,
            state=State(layers=tuple(layers)),
            aux_loss=torch.stack(aux_losses).mean() if aux_losses else None,
        )

    def num_parameters(self) -> int:
        """Return the number of trained values; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Both what the blocks get and the first scores then have a variance of about 1.
        nn.init.normal_(self.embedding.weight, std=1.0 / math.sqrt(self.config.width))
        # Every block adds two projected branches to the residual stream; scaling them keeps its
        # variance independent of the depth (the GPT-2 report, section 2.3).
        residual_scale = 1.0 / math.sqrt(2 * self.config.num_layers)
        with torch.no_grad():
            for block in self._blocks():
                block.recurrence.reset_time_scales()
                for projection in (block.attention.output, block.ffn[2]):
                    assert isinstance(projection, nn.Linear)
                    projection.weight.mul_(residual_scale)
