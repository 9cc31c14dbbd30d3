"""The recurrence h_t = a_t * h_{t-1} + b_t over all T, with its gradient written out.

With s = sigmoid(W_g h' + bias) and g = sigmoid(W_m [z_t; h'] + bias):
a = (1.1 gamma + 0.1 (1 - g)) / 1.2 and b = (s + 0.1 g) * z. In the exact recurrence h' is h_{t-1};
since the gates depend on it, the recurrence is not associative and cannot be a parallel scan.

Source: MM-Rec (obarlik/mm-rec), core + 0.1 mix, with the terms in h and z collected. As published,
a reaches 1.2 and lets h grow without limit; dividing a by that bound keeps it below 1.

Shapes: B batch, T time, D width, C gate chunks.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from mm_rec import kernel
from mm_rec.scan_loop import DECAY_BOUND, MIX, backward_loop, forward_loop


def scan(
    z_btd: Tensor,
    gamma_btd: Tensor,
    gate_z_btd: Tensor,
    bias: Tensor,
    weight_h: Tensor,
    h_bd: Tensor,
    *,
    gate_chunk_len: int = 1,
    gate_position: int = 0,
    h_gate_bd: Tensor | None = None,
) -> Tensor:
    """Run the recurrence and return h_btd.

    It can be differentiated once; a second time raises RuntimeError. Lower precisions are
    computed in float32, since the errors of some hundred steps add up.

    Args:
        z_btd: Input of the recurrence.
        gamma_btd: Decay in (0, 1).
        gate_z_btd: What g gets from z: the z half of W_m.
        bias: Of both gates, [2D], s first.
        weight_h: The gates' weights on h, [2D, D], s first.
        h_bd: State before the first token.
        gate_chunk_len: Tokens whose gates see the same h, that of the chunk's beginning. 1 is
            the exact recurrence; more is a deviation from the published model, and faster.
        gate_position: Tokens of the first such chunk that came before.
        h_gate_bd: The state at the beginning of that chunk; `h_bd` when there were none.
    """
    if h_gate_bd is None:
        h_gate_bd = h_bd
    inputs = (z_btd, gamma_btd, gate_z_btd, bias, weight_h, h_bd, h_gate_bd)
    dtype = torch.float64 if z_btd.dtype == torch.float64 else torch.float32
    h_btd: Tensor = _scan(*(value.to(dtype) for value in inputs), gate_chunk_len, gate_position)[0]
    return h_btd


def plain_scan(
    z_btd: Tensor,
    gamma_btd: Tensor,
    gate_z_btd: Tensor,
    bias: Tensor,
    weight_h: Tensor,
    h_bd: Tensor,
) -> Tensor:
    """Run the exact recurrence as published, a token at a time, and return h_btd.

    The definition that `scan` is tested and timed against; slow, above all in the backward pass.
    """
    width = z_btd.shape[2]
    weight_s, weight_g = weight_h[:width], weight_h[width:]
    bias_s, bias_g = bias[:width], bias[width:]
    states = []
    for t in range(z_btd.shape[1]):
        z, decay = z_btd[:, t], gamma_btd[:, t] / DECAY_BOUND
        s = torch.sigmoid(h_bd @ weight_s.t() + bias_s)
        g = torch.sigmoid(h_bd @ weight_g.t() + bias_g + gate_z_btd[:, t])
        core = z * s + decay * h_bd
        mix = (1.0 - g) * h_bd / DECAY_BOUND + g * z + decay * h_bd
        h_bd = core + MIX * mix
        states.append(h_bd)
    return torch.stack(states, dim=1)


# Custom operators, so that torch.compile takes them as they are and unrolls no loop over T.
_INPUTS = (
    "Tensor z, Tensor gamma, Tensor gate_z, Tensor bias, Tensor weight, Tensor h_first, "
    "Tensor h_gate"
)


@torch.library.custom_op(
    "mm_rec::scan",
    mutates_args=(),
    schema=f"({_INPUTS}, int gate_chunk, int gate_position) -> (Tensor, Tensor)",
)
def _scan(
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
    batch, time, width = z.shape
    if not _has_kernel(z):
        return forward_loop(
            z, gamma, gate_z, bias, weight, h_first, h_gate, gate_chunk, gate_position
        )
    h, gates = z.new_empty(batch, time, width), z.new_empty(batch, time, 2 * width)
    kernel.call(
        "scan_forward",
        torch.get_num_threads(),
        _dense_rows(z),
        {"gate_chunk": gate_chunk, "gate_position": gate_position},
        gamma=gamma.contiguous(),
        gate_z=gate_z.contiguous(),
        bias=bias.contiguous(),
        weight=weight.t().contiguous(),
        h_first=h_first.contiguous(),
        h_gate=h_gate.contiguous(),
        h=h,
        gates=gates,
        buffer=z.new_empty(batch, 2 * width),
    )
    return h, gates


@_scan.register_fake
def _scan_fake(z: Tensor, *_: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    batch, time, width = z.shape
    return z.new_empty(batch, time, width), z.new_empty(batch, time, 2 * width)


@torch.library.custom_op(
    "mm_rec::scan_backward",
    mutates_args=(),
    schema="(Tensor grad_h, Tensor h, Tensor gates, Tensor z, Tensor gamma, Tensor weight, "
    "Tensor h_first, int gate_chunk, int gate_position) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _scan_backward(
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
    if not _has_kernel(z):
        return backward_loop(grad_h, h, gates, z, gamma, weight, h_first, gate_chunk, gate_position)
    grads = _empty_grads(z, gates, h_first)
    kernel.call(
        "scan_backward",
        torch.get_num_threads(),
        _dense_rows(z),
        {"gate_chunk": gate_chunk, "gate_position": gate_position},
        gamma=gamma.contiguous(),
        weight=weight.contiguous(),
        h_first=h_first.contiguous(),
        h=h.contiguous(),
        gates=gates.contiguous(),
        grad_h=grad_h.contiguous(),
        buffer=z.new_empty(z.shape[0], 2 * z.shape[2]),
        **dict(
            zip(
                ("grad_z", "grad_gamma", "grad_gates", "grad_h_first", "grad_h_gate"),
                grads,
                strict=True,
            )
        ),
    )
    return grads


@_scan_backward.register_fake
def _scan_backward_fake(
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
    return _empty_grads(z, gates, h_first)


def _empty_grads(
    z: Tensor, gates: Tensor, h_first: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        z.new_empty(z.shape),
        z.new_empty(z.shape),
        gates.new_empty(gates.shape),
        h_first.new_empty(h_first.shape),
        h_first.new_empty(h_first.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    z, gamma, _, _, weight, h_first, h_gate, *ctx.gate_chunking = inputs
    ctx.save_for_backward(*output, z, gamma, weight, h_first, h_gate)


def _differentiate(ctx: Any, grad_h: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    h, gates, z, gamma, weight, h_first, h_gate = ctx.saved_tensors
    gate_chunk, gate_position = ctx.gate_chunking
    grad_z, grad_gamma, grad_gates, grad_h_first, grad_h_gate = _scan_backward(
        grad_h, h, gates, z, gamma, weight, h_first, gate_chunk, gate_position
    )
    # The weight is shared by all of T, so its gradient is one product, not one per step.
    seen_bcd, sums_bcd = _per_gate_chunk(h, h_gate, grad_gates, gate_chunk, gate_position)
    with torch.autocast(z.device.type, enabled=False):
        grad_weight = sums_bcd.flatten(0, 1).t() @ seen_bcd.flatten(0, 1)
    grad_bias = sums_bcd.sum(dim=(0, 1))
    grad_gate_z = grad_gates[..., z.shape[2] :]
    return (
        *(grad_z, grad_gamma, grad_gate_z, grad_bias, grad_weight, grad_h_first, grad_h_gate),
        *(None, None),
    )


_scan.register_autograd(_differentiate, setup_context=_save)


def _per_gate_chunk(
    h_btd: Tensor, h_gate_bd: Tensor, grad_gates: Tensor, gate_chunk: int, gate_position: int
) -> tuple[Tensor, Tensor]:
    """Return the states that the gates saw, [B, C, D], and their gradients' sums, [B, C, 2D]."""
    first = gate_chunk - gate_position - 1
    seen_bcd = torch.cat((h_gate_bd[:, None], h_btd[:, first:-1:gate_chunk]), dim=1)
    if gate_chunk == 1:
        return seen_bcd, grad_gates
    missing = seen_bcd.shape[1] * gate_chunk - gate_position - h_btd.shape[1]
    whole = functional.pad(grad_gates, (0, 0, gate_position, missing))
    return seen_bcd, torch.unflatten(whole, 1, (-1, gate_chunk)).sum(dim=2)


def _refuse(ctx: Any, *_: Tensor) -> NoReturn:  # noqa: ANN401
    raise RuntimeError("scan can be differentiated once; for higher derivatives use plain_scan")


_scan_backward.register_autograd(_refuse)


def _has_kernel(z: Tensor) -> bool:
    return z.device.type == "cpu" and kernel.load(z.dtype) is not None


def _dense_rows(z_btd: Tensor) -> Tensor:
    """Return z itself where its last dimension is dense: it is a part of a wider projection."""
    return z_btd if z_btd.stride(2) == 1 else z_btd.contiguous()
