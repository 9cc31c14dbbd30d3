from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mm_rec import PRESETS, MMRec, ModelConfig
from mm_rec.footprint import estimate


def kept_bytes(config: ModelConfig, batch_size: int, seq_len: int, low_precision: bool) -> int:
    """Count what a forward pass leaves behind for the backward pass and as the state."""
    model = MMRec(config)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            # Kept alive, so that no other tensor gets its address.
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    tokens = torch.randint(0, config.vocab_size, (batch_size, seq_len))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=low_precision),
    ):
        output = model(tokens)
    for layer in output.state.layers:
        keep(layer.memory.slots_bmd)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def estimated_bytes(config: ModelConfig, batch_size: int, seq_len: int, low_precision: bool) -> int:
    footprint = estimate(
        config,
        num_parameters=MMRec(config).num_parameters(),
        batch_size=batch_size,
        seq_len=seq_len,
        low_precision=low_precision,
    )
    return footprint.activation_bytes


@pytest.mark.parametrize(
    ("changes", "batch_size", "seq_len", "low_precision"),
    [
        ({}, 2, 256, False),
        ({}, 1, 1_024, False),
        ({}, 16, 64, False),
        ({"dropout": 0.0}, 2, 256, False),
        ({"aux_loss_weight": 0.1}, 2, 256, False),
        ({"gate_chunk_len": 8}, 2, 256, False),
        ({"width": 256, "num_heads": 8}, 1, 128, False),
        ({"memory_levels": (4_096, 256)}, 2, 256, False),
        ({}, 2, 256, True),
        ({"dropout": 0.0, "aux_loss_weight": 0.1}, 4, 256, True),
    ],
)
def test_what_a_layer_keeps_is_what_the_estimate_says(
    changes: dict[str, Any], batch_size: int, seq_len: int, low_precision: bool
) -> None:
    # The difference of two depths leaves out the head, which a forward pass tells nothing about.
    shallow, deep = (
        dataclasses.replace(PRESETS["tiny"], num_layers=num_layers, **changes)
        for num_layers in (1, 3)
    )
    kept, estimated = (
        count(deep, batch_size, seq_len, low_precision)
        - count(shallow, batch_size, seq_len, low_precision)
        for count in (kept_bytes, estimated_bytes)
    )
    assert estimated == pytest.approx(kept, rel=0.1)


def test_the_parts_add_up_and_a_long_sample_in_pieces_takes_less() -> None:
    config = PRESETS["tiny"]
    whole = estimate(config, num_parameters=1_000, batch_size=4, seq_len=4_096)
    assert (whole.parameter_bytes, whole.gradient_bytes, whole.optimizer_bytes) == (
        4_000,
        4_000,
        8_000,
    )
    assert whole.total_bytes == 16_000 + whole.activation_bytes + whole.allocator_bytes
    assert f"{whole.total_bytes / 1e6:,.0f} MB (parameters 0 MB" in str(whole)
    pieces = estimate(config, num_parameters=1_000, batch_size=4, seq_len=4_096, bptt_len=512)
    short = estimate(config, num_parameters=1_000, batch_size=4, seq_len=512)
    assert short.total_bytes < pieces.total_bytes < 1.2 * short.total_bytes
    assert pieces.total_bytes < whole.total_bytes / 5
