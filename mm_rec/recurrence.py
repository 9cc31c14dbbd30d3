"""The gated recurrence: the only part of the model that goes through time step by step.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

DECAY_MARGIN = 1e-6
MIX = 0.1
# As published, a = (1 + MIX) * gamma + MIX * (1 - g), which reaches 1.2 and lets h grow without
# limit. Dividing a by that bound keeps it below 1 and changes nothing else.
DECAY_BOUND = 1.0 + 2.0 * MIX
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

    def reset_decay(self) -> None:
        """Spread the initial decays evenly over `INITIAL_DECAY_RANGE`, channel by channel."""
        for network in (self.from_z, self.from_k):
            output = network[-1]
            assert isinstance(output, nn.Linear)
            decay_d = torch.linspace(*INITIAL_DECAY_RANGE, output.out_features)
            with torch.no_grad():
                # The decay is a product of two such gates, hence the root.
                output.bias.copy_(torch.logit(decay_d.sqrt()))

    def forward(self, z_btd: Tensor, k_btd: Tensor) -> Tensor:
        """Return gamma_btd, strictly inside (0, 1)."""
        gamma_btd = torch.sigmoid(self.from_z(z_btd)) * torch.sigmoid(self.from_k(k_btd))
        return gamma_btd.clamp(DECAY_MARGIN, 1.0 - DECAY_MARGIN)


def scan(
    z_btd: Tensor, gamma_btd: Tensor, gate_z_btd: Tensor, weight_h: Tensor, h_bd: Tensor
) -> Tensor:
    """Run h_t = a_t * h_{t-1} + b_t over all T and return h_btd.

    With s = sigmoid(W_g h_{t-1} + bias) and g = sigmoid(W_m [z_t; h_{t-1}] + bias):
    a = (1.1 gamma + 0.1 (1 - g)) / 1.2 and b = (s + 0.1 g) * z. The gates depend on h_{t-1}, so
    the exact recurrence is not associative and cannot be a parallel scan.

    Args:
        z_btd: Input of the recurrence.
        gamma_btd: Decay in (0, 1).
        gate_z_btd: The part of both gates that does not depend on h, [B, T, 2D], s first.
        weight_h: The gates' weights on h, [2D, D], s first.
        h_bd: State before the first token.

    Source: MM-Rec (obarlik/mm-rec), core + 0.1 mix, with the terms in h and z collected.
    """
    # Everything that does not need h_{t-1} is done here, over all T at once; time comes first
    # because each step then reads and writes contiguous rows.
    weight_t = weight_h.t().contiguous()
    base_tbd = ((1.0 + MIX) / DECAY_BOUND * gamma_btd + MIX / DECAY_BOUND).transpose(0, 1)
    inputs = zip(
        gate_z_btd.transpose(0, 1).contiguous().unbind(0),
        base_tbd.contiguous().unbind(0),
        z_btd.transpose(0, 1).contiguous().unbind(0),
        strict=True,
    )
    states = []
    for gate_z_b, base_bd, z_bd in inputs:
        s_bd, g_bd = torch.sigmoid(torch.addmm(gate_z_b, h_bd, weight_t)).chunk(2, dim=1)
        a_bd = torch.sub(base_bd, g_bd, alpha=MIX / DECAY_BOUND)
        b_bd = torch.add(s_bd, g_bd, alpha=MIX) * z_bd
        h_bd = torch.addcmul(b_bd, a_bd, h_bd)
        states.append(h_bd)
    return torch.stack(states, dim=1)


class Recurrence(nn.Module):
    """The decay, the gates and the scan over time."""

    def __init__(self, width: int) -> None:
        """Make the decay gate and the gates s and g."""
        super().__init__()
        self.width = width
        self.decay = DecayGate(width)
        # W_m acts on [z; h]; its z half runs over all T at once, its h half shares one product
        # with W_g in every step.
        self.gate_z = nn.Linear(width, width, bias=False)
        self.weight_h = nn.Parameter(torch.empty(2 * width, width))
        self.gate_bias = nn.Parameter(torch.zeros(2 * width))
        nn.init.normal_(self.weight_h, std=1.0 / math.sqrt(width))

    def forward(self, z_btd: Tensor, k_btd: Tensor, h_bd: Tensor) -> Tensor:
        """Return h_btd for all T, starting from h_bd."""
        gate_z_btd = functional.pad(self.gate_z(z_btd), (self.width, 0)) + self.gate_bias
        return scan(z_btd, self.decay(z_btd, k_btd), gate_z_btd, self.weight_h, h_bd)
