"""The gated recurrence: the only part of the model that goes through time step by step.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mm_rec import kernel
from mm_rec.scan import scan
from mm_rec.scan_loop import DECAY_BOUND, MIX

DECAY_MARGIN = 1e-6
# Half-lives between a token and some tens of tokens at the start of training, so that both short
# and long time scales have channels to begin with.
INITIAL_DECAY_RANGE = (0.3, 0.98)


class DecayGate(nn.Module):
    """The decay gamma: two small networks, one of z and one of k, multiplied.

    Source: MM-Rec (obarlik/mm-rec), the block's decay.
    """

    def __init__(self, width: int) -> None:
        """Make the four projections; the inner width is a quarter of `width`."""
        super().__init__()
        inner = width // 4
        self.from_z = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.from_k = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def reset(self, decay_d: Tensor) -> None:
        """Start with the given decays, channel by channel."""
        for network in (self.from_z, self.from_k):
            output = network[-1]
            assert isinstance(output, nn.Linear)
            with torch.no_grad():
                # The decay is a product of two such gates, hence the root.
                output.bias.copy_(torch.logit(decay_d.sqrt()))

    def forward(self, z_btd: Tensor, k_btd: Tensor) -> Tensor:
        """Return gamma_btd, strictly inside (0, 1)."""
        gamma_btd = torch.sigmoid(self.from_z(z_btd)) * torch.sigmoid(self.from_k(k_btd))
        return gamma_btd.clamp(DECAY_MARGIN, 1.0 - DECAY_MARGIN)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecurrenceState:
    """What the recurrence carries over.

    Attributes:
        h_bd: The state after the last token.
        h_gate_bd: The state that the gates of the next token see; `h_bd` where the gates are
            exact, else that at the beginning of the token's gate chunk.
        gate_position: Tokens of that gate chunk that are done.
    """

    h_bd: Tensor
    h_gate_bd: Tensor
    gate_position: int = 0

    def detach(self) -> RecurrenceState:
        """Return the same state without its history of gradients."""
        return RecurrenceState(
            h_bd=self.h_bd.detach(),
            h_gate_bd=self.h_gate_bd.detach(),
            gate_position=self.gate_position,
        )


class Recurrence(nn.Module):
    """The decay, the gates and the scan over time."""

    def __init__(self, width: int, *, gate_chunk_len: int = 1) -> None:
        """Make the decay gate and the gates s and g."""
        super().__init__()
        self.width = width
        self.gate_chunk_len = gate_chunk_len
        self.decay = DecayGate(width)
        # W_m acts on [z; h]; its z half runs over all T at once, its h half shares one product
        # with W_g in every step.
        self.gate_z = nn.Linear(width, width, bias=False)
        self.weight_h = nn.Parameter(torch.empty(2 * width, width))
        self.gate_bias = nn.Parameter(torch.zeros(2 * width))
        nn.init.normal_(self.weight_h, std=1.0 / math.sqrt(width))
        # Compiled and loaded here, so that forked processes have it from the start.
        kernel.load(self.weight_h.dtype)

    def reset_time_scales(self) -> None:
        """Spread the initial decays evenly over `INITIAL_DECAY_RANGE`, channel by channel.

        The gate s lets in as much as is forgotten, so that h has about the scale of z on every
        time scale. In short trainings this saved 0.1 bits per character.
        """
        decay_d = torch.linspace(*INITIAL_DECAY_RANGE, self.width)
        self.decay.reset(decay_d)
        # a of scan.py with g at its initial 1/2.
        kept_d = ((1.0 + MIX) * decay_d + MIX / 2.0) / DECAY_BOUND
        with torch.no_grad():
            self.gate_bias[: self.width] = torch.logit(1.0 - kept_d)

    def initial_state(self, batch_size: int) -> RecurrenceState:
        """Return the state before the first token."""
        zeros_bd = self.weight_h.new_zeros(batch_size, self.width)
        return RecurrenceState(h_bd=zeros_bd, h_gate_bd=zeros_bd)

    def forward(
        self, z_btd: Tensor, k_btd: Tensor, state: RecurrenceState
    ) -> tuple[Tensor, RecurrenceState]:
        """Return h_btd for all T, and the state after it."""
        h_btd = scan(
            z_btd,
            self.decay(z_btd, k_btd),
            self.gate_z(z_btd),
            self.gate_bias,
            self.weight_h,
            state.h_bd,
            gate_chunk_len=self.gate_chunk_len,
            gate_position=state.gate_position,
            h_gate_bd=state.h_gate_bd,
        )
        return h_btd, self._state_after(h_btd, state)

    def _state_after(self, h_btd: Tensor, before: RecurrenceState) -> RecurrenceState:
        position = (before.gate_position + h_btd.shape[1]) % self.gate_chunk_len
        # The gate chunk that is going on began this many tokens before the end.
        begin = h_btd.shape[1] - position
        if begin > 0:
            h_gate_bd = h_btd[:, begin - 1]
        else:
            h_gate_bd = before.h_bd if begin == 0 else before.h_gate_bd
        return RecurrenceState(h_bd=h_btd[:, -1], h_gate_bd=h_gate_bd, gate_position=position)
