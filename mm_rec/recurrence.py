"""The gated recurrence: the only part of the model that goes through time step by step.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mm_rec.scan import scan

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
        return scan(
            z_btd,
            self.decay(z_btd, k_btd),
            self.gate_z(z_btd),
            self.gate_bias,
            self.weight_h,
            h_bd,
        )
