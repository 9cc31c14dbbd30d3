from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from mm_rec import PRESETS, ConfigError, MMRec, ModelConfig, State


def make_model(config: ModelConfig, **changes: float) -> MMRec:
    torch.manual_seed(0)
    model = MMRec(dataclasses.replace(config, dropout=0.0, **changes))
    # Larger than at the start of training, so that what is read from the memory matters.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
    return model.eval()


def make_tokens(length: int, batch_size: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 300, (batch_size, length), generator=generator)


def logits_in_pieces(model: MMRec, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    state: State | None = None
    pieces = []
    for piece in tokens.split(lengths, dim=1):
        output = model(piece, state)
        pieces.append(output.logits_btv)
        state = output.state
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("changed", [0, 7, 8, 20, 39])
def test_output_does_not_depend_on_later_inputs(small: ModelConfig, changed: int) -> None:
    model, tokens = make_model(small), make_tokens(40)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % small.vocab_size
    before, after = model(tokens).logits_btv, model(other).logits_btv
    torch.testing.assert_close(before[:, :changed], after[:, :changed], rtol=0.0, atol=0.0)
    assert not torch.allclose(before[:, changed], after[:, changed])


@pytest.mark.parametrize(
    "lengths",
    [[48, 48], [8] * 12, [50, 46], [3, 5, 1, 30, 57], [1] * 96],
    ids=["halves", "chunks", "across chunks", "uneven", "token by token"],
)
@pytest.mark.parametrize("gate_chunk_len", [1, 5])
def test_carried_state_gives_what_one_pass_gives(
    small: ModelConfig, lengths: list[int], gate_chunk_len: int
) -> None:
    # 12 chunks pass through 4 top slots, so that the memory wraps around.
    model, tokens = make_model(small, gate_chunk_len=gate_chunk_len), make_tokens(96)
    torch.testing.assert_close(
        logits_in_pieces(model, tokens, lengths),
        model(tokens).logits_btv,
        rtol=1e-4,
        atol=1e-5,
    )


def test_memory_reaches_tokens_beyond_the_recurrence(small: ModelConfig) -> None:
    model, tokens = make_model(small), make_tokens(40)
    with torch.no_grad():
        for block in model._blocks():
            block.recurrence.weight_h.zero_()
            block.recurrence.decay.from_z[2].bias.fill_(-30.0)  # type: ignore[operator, union-attr]
    state = model(tokens).state
    assert state.layers[0].memory.slots_bmd.shape == (3, 16, 32)
    blank = model.initial_state(3)
    mixed = State(
        layers=tuple(
            dataclasses.replace(layer, memory=empty.memory)
            for layer, empty in zip(state.layers, blank.layers, strict=True)
        )
    )
    next_tokens = make_tokens(4)
    with_memory = model(next_tokens, state).logits_btv
    assert not torch.allclose(with_memory, model(next_tokens, mixed).logits_btv, atol=1e-4)


def test_memory_holds_the_chunks_and_its_levels_are_their_means(small: ModelConfig) -> None:
    model, tokens = make_model(small), make_tokens(20)
    attention = model._blocks()[0].attention
    memory = model(tokens).state.layers[0].memory
    assert memory.pending_brd.shape[1] == 20 % small.chunk_len
    levels = attention.levels(memory)
    assert [level.shape[1] for level in levels] == list(small.memory_levels)
    for fine, coarse in pairwise(levels):
        torch.testing.assert_close(fine.unflatten(1, (-1, 2)).mean(2), coarse)
    # Two chunks were written, so two of the four learned slots are left, moved to the front.
    torch.testing.assert_close(levels[-1][0, :2], attention.initial_sd[2:])


def test_gradients_reach_every_parameter_through_the_memory_as_well(small: ModelConfig) -> None:
    model = make_model(small, aux_loss_weight=0.1).train()
    output = model(make_tokens(24))
    assert output.aux_loss is not None
    (output.logits_btv.square().mean() + output.aux_loss).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0.0
    ]
    assert without == []


def test_detached_state_carries_no_gradient(small: ModelConfig) -> None:
    state = make_model(small)(make_tokens(20)).state
    assert state.layers[0].recurrence.h_bd.requires_grad
    layer = state.detach().layers[0]
    assert not layer.recurrence.h_bd.requires_grad
    assert not layer.recurrence.h_gate_bd.requires_grad
    assert not layer.memory.slots_bmd.requires_grad
    assert not layer.memory.pending_brd.requires_grad


def test_forward_is_deterministic_and_aux_loss_is_off_by_default(small: ModelConfig) -> None:
    model, tokens = make_model(small), make_tokens(20)
    assert torch.equal(model(tokens).logits_btv, model(tokens).logits_btv)
    assert model(tokens).aux_loss is None


def test_loss_without_whole_logits_equals_the_loss_of_the_logits(small: ModelConfig) -> None:
    model, tokens, labels = make_model(small), make_tokens(70), make_tokens(70).flip(1)
    chunked = model(tokens).cross_entropy(labels)
    gradients = torch.autograd.grad(chunked, list(model.parameters()))
    logits = model(tokens).logits_btv
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(chunked, whole)
    for got, expected in zip(
        gradients, torch.autograd.grad(whole, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_autocast_trains_in_bfloat16_with_gradients_near_the_exact_ones(
    small: ModelConfig,
) -> None:
    model, tokens = make_model(small), make_tokens(40)
    exact = torch.autograd.grad(model(tokens).cross_entropy(tokens), list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(tokens)
        loss = output.cross_entropy(tokens)
    assert output.state.layers[0].recurrence.h_bd.dtype == torch.float32
    low = torch.autograd.grad(loss, list(model.parameters()))
    for got, expected in zip(low, exact, strict=True):
        similarity = torch.cosine_similarity(got.flatten(), expected.flatten(), dim=0)
        assert similarity > 0.99


def test_tiny_preset_has_about_two_million_parameters() -> None:
    assert MMRec(PRESETS["tiny"]).num_parameters() == pytest.approx(2e6, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 30}, "num_heads|multiple of 4"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 3}, "num_heads"),
        ({"gate_chunk_len": 0}, "gate_chunk_len"),
        ({"dropout": 1.0}, "dropout"),
        ({"chunk_len": 6}, "chunk_len"),
        ({"memory_levels": (16, 5)}, "memory_levels"),
        ({"aux_loss_weight": -1.0}, "aux_loss_weight"),
    ],
)
def test_impossible_sizes_are_named(
    small: ModelConfig, changes: dict[str, float], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        ModelConfig(**dataclasses.asdict(small) | changes)
