"""One block of MM-Rec and the state that it carries from chunk to chunk.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mm_rec.config import NORM_EPS, ModelConfig
from mm_rec.memory import Memory, MemoryAttention
from mm_rec.recurrence import Recurrence, RecurrenceState


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerState:
    """What one block carries over."""

    recurrence: RecurrenceState
    memory: Memory

    def detach(self) -> LayerState:
        """Return the same state without its history of gradients."""
        return LayerState(recurrence=self.recurrence.detach(), memory=self.memory.detach())


class NextStatePrediction(nn.Module):
    """The auxiliary loss: predict a view of h_t from h_{t-1}.

    Source: MM-Rec (obarlik/mm-rec), mean over B and T of |MLP1(sg(h_t)) - MLP2(h_{t-1})|^2.
    """

    def __init__(self, width: int) -> None:
        """Make the two networks; the inner width is a quarter of `width`."""
        super().__init__()
        inner = width // 4
        self.target = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.predictor = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, h_btd: Tensor, h_before_bd: Tensor) -> Tensor:
        """Return the scalar loss; `h_before_bd` is the state before the first token."""
        previous_btd = torch.cat((h_before_bd[:, None], h_btd[:, :-1]), dim=1)
        error_btd = self.target(h_btd.detach()) - self.predictor(previous_btd)
        loss: Tensor = error_btd.square().sum(dim=-1).mean()
        return loss


class Block(nn.Module):
    """Recurrence, memory attention and feed-forward network around a residual stream.

    Source: MM-Rec (obarlik/mm-rec).
    """

    def __init__(self, config: ModelConfig) -> None:
        """Make the sub-layers of one block."""
        super().__init__()
        width = config.width
        self.width = width
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.project = nn.Linear(width, 4 * width, bias=False)
        self.recurrence = Recurrence(width, gate_chunk_len=config.gate_chunk_len)
        self.attention = MemoryAttention(config)
        self.dropout = nn.Dropout(config.dropout)
        self.ffn_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(config.dropout),
        )
        self.aux = NextStatePrediction(width) if config.aux_loss_weight else None

    def initial_state(self, batch_size: int) -> LayerState:
        """Return the state before the first token."""
        return LayerState(
            recurrence=self.recurrence.initial_state(batch_size),
            memory=self.attention.initial_memory(batch_size),
        )

    def forward(self, x_btd: Tensor, state: LayerState) -> tuple[Tensor, LayerState, Tensor | None]:
        """Return the block's output [B, T, D], the state after it, and the auxiliary loss."""
        q_btd, k_btd, v_btd, z_btd = self.project(self.norm(x_btd)).chunk(4, dim=-1)
        h_btd, recurrence = self.recurrence(z_btd, k_btd, state.recurrence)
        read_btd, memory = self.attention(h_btd, q_btd, state.memory)
        y_btd = x_btd + self.dropout(h_btd + read_btd + 0.1 * v_btd)
        aux_loss = None if self.aux is None else self.aux(h_btd, state.recurrence.h_bd)
        out_btd = y_btd + self.ffn(self.ffn_norm(y_btd))
        return out_btd, LayerState(recurrence=recurrence, memory=memory), aux_loss
