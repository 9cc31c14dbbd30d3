"""The passes of the recurrence in torch, for other devices and where there is no compiler.

See scan.py for the equations. Time comes first, so that each step reads and writes contiguous
rows, and every step writes into memory made before.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MIX = 0.1
DECAY_BOUND = 1.0 + 2.0 * MIX


def forward_loop(
    z: Tensor,
    gamma: Tensor,
    gate_z: Tensor,
    bias: Tensor,
    weight: Tensor,
    h_first: Tensor,
    h_gate: Tensor,
    gate_chunk: int,
    gate_position: int,
) -> tuple[Tensor, Tensor]:
    """Return h_btd and the gates [B, T, 2D], s first."""
    width = z.shape[2]
    # The gates of all of T as far as they do not depend on h; turned into the gates in place.
    gates = functional.pad(gate_z, (width, 0)).add_(bias).transpose(0, 1).contiguous()
    a = ((1.0 + MIX) * gamma + MIX).div_(DECAY_BOUND).transpose(0, 1).contiguous()
    b = z.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    h = torch.empty_like(b)
    weight_t, before = weight.t().contiguous(), h_first
    s_all, g_all = gates.chunk(2, dim=2)
    steps = zip(*(value.unbind(0) for value in (gates, s_all, g_all, a, b, h)), strict=True)
    for t, (gates_t, s_t, g_t, a_t, b_t, h_t) in enumerate(steps):
        if t == 0 or (t + gate_position) % gate_chunk == 0:
            from_h = torch.mm(before if t else h_gate, weight_t)
        gates_t.add_(from_h).sigmoid_()
        a_t.sub_(g_t, alpha=MIX / DECAY_BOUND)
        b_t.mul_(torch.add(s_t, g_t, alpha=MIX))
        torch.addcmul(b_t, a_t, before, out=h_t)
        before = h_t
    return h.transpose(0, 1).contiguous(), gates.transpose(0, 1).contiguous()


def backward_loop(
    grad_h: Tensor,
    h: Tensor,
    gates: Tensor,
    z: Tensor,
    gamma: Tensor,
    weight: Tensor,
    h_first: Tensor,
    gate_chunk: int,
    gate_position: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of z, gamma, the gates before the sigmoid, h_first and h_gate."""
    s, g = gates.chunk(2, dim=2)
    before = torch.cat((h_first[:, None], h[:, :-1]), dim=1)
    a = ((1.0 + MIX) * gamma + MIX * (1.0 - g)).div_(DECAY_BOUND).transpose(0, 1).contiguous()
    # Times the gradient of h_t this is the gradient of the gates before the sigmoid.
    by_gates = gates * (1.0 - gates) * torch.cat((z, MIX * (z - before / DECAY_BOUND)), dim=2)
    by_gates = torch.unflatten(by_gates, 2, (2, -1)).transpose(0, 1).contiguous()
    grads = grad_h.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    grad_gates = torch.empty_like(by_gates)
    carry, gates_sum = torch.zeros_like(h_first), torch.zeros_like(by_gates[0])
    steps = zip(*(value.unbind(0) for value in (grads, a, by_gates, grad_gates)), strict=True)
    for t, (grad_t, a_t, by_gates_t, grad_gates_t) in reversed(list(enumerate(steps))):
        grad_t.add_(carry)
        torch.mul(by_gates_t, grad_t.unsqueeze(1), out=grad_gates_t)
        gates_sum.add_(grad_gates_t)
        carry = grad_t * a_t
        if t and (t + gate_position) % gate_chunk == 0:
            carry.addmm_(gates_sum.flatten(1), weight)
            gates_sum.zero_()
    grads = grads.transpose(0, 1)
    return (
        grads * (s + MIX * g),
        (grads * before).mul_((1.0 + MIX) / DECAY_BOUND),
        grad_gates.flatten(2).transpose(0, 1).contiguous(),
        carry,
        gates_sum.flatten(1) @ weight,
    )
