"""How much memory training takes, from the sizes alone.

Shapes: B batch, T time, D width, V vocabulary, M slots of the memory's finest level, S slots of its
top level, C chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn import functional

from mm_rec.config import ModelConfig

FLOAT_BYTES = 4
BFLOAT16_BYTES = 2
ADAMW_MOMENTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBytes:
    """What a block keeps for the backward pass, in bytes per token and unit of the width.

    Attributes:
        always: Block without the parts below.
        dropout: Masks of both branches.
        aux_loss: The auxiliary loss.
    """

    always: float
    dropout: float
    aux_loss: float


# Counted with torch.autograd.graph.saved_tensors_hooks, as the tests do again; 8 of the 28 floats
# are the FFN's, 4 the projection to q, k, v and z, 3 the recurrence's h and gates.
SAVED = SavedBytes(always=28.05 * FLOAT_BYTES, dropout=2 * FLOAT_BYTES, aux_loss=3 * FLOAT_BYTES)
# Under autocast what matrix products read is kept in bfloat16, the rest as it is.
SAVED_LOW = SavedBytes(always=77.5, dropout=6.0, aux_loss=8.2)
# On top of all that is saved: the last norm, and what the backward pass computes before it frees
# anything. In floats per token and unit of the width.
TRANSIENT = 8
# Resident memory beyond the tensors: blocks that glibc's malloc keeps between those in use. It was
# 1.4 to 1.6 times the activations for batches of 1 to 64, sequences of 64 to 2,048 and widths of
# 128 to 512; with MALLOC_MMAP_THRESHOLD_=1048576 it was 1.05 times.
ALLOCATOR_SHARE = 0.55


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes at the peak of a training step, by purpose.

    Attributes:
        parameter_bytes: The model.
        gradient_bytes: One gradient per parameter.
        optimizer_bytes: AdamW's two moments.
        activation_bytes: Tensors of a micro-step, freed at its end.
        allocator_bytes: What the C library's allocator holds between those.
    """

    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    allocator_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum; Python, torch and the data come on top."""
        return (
            self.parameter_bytes
            + self.gradient_bytes
            + self.optimizer_bytes
            + self.activation_bytes
            + self.allocator_bytes
        )

    def __str__(self) -> str:
        return (
            f"{_megabytes(self.total_bytes)} (parameters {_megabytes(self.parameter_bytes)}, "
            f"gradients {_megabytes(self.gradient_bytes)}, AdamW "
            f"{_megabytes(self.optimizer_bytes)}, activations {_megabytes(self.activation_bytes)}, "
            f"allocator {_megabytes(self.allocator_bytes)})"
        )


def estimate(
    config: ModelConfig,
    *,
    num_parameters: int,
    batch_size: int,
    seq_len: int,
    bptt_len: int | None = None,
    low_precision: bool = False,
) -> Footprint:
    """Return an estimate for training with AdamW on a CPU.

    Args:
        config: Of the model.
        num_parameters: Of the model.
        batch_size: Samples of a micro-step; accumulating gradients over more costs nothing.
        seq_len: Tokens of a sample.
        bptt_len: Tokens that gradients flow back over; None is the whole sample.
        low_precision: Whether matrices are multiplied in bfloat16.
    """
    parameter_bytes = FLOAT_BYTES * num_parameters
    length = min(seq_len, bptt_len or seq_len)
    activations = (
        config.num_layers * _saved_by_block(config, batch_size, length, low_precision)
        + FLOAT_BYTES * TRANSIENT * batch_size * length * config.width
        + _loss_bytes(config, batch_size * length)
    )
    if length < seq_len:
        # The state that the piece before has left, with that piece's h.
        per_layer = batch_size * config.width * (config.memory_levels[0] + length)
        activations += FLOAT_BYTES * config.num_layers * per_layer
    if low_precision:
        # Autocast keeps the weights that it has converted.
        activations += BFLOAT16_BYTES * num_parameters
    return Footprint(
        parameter_bytes=parameter_bytes,
        gradient_bytes=parameter_bytes,
        optimizer_bytes=ADAMW_MOMENTS * parameter_bytes,
        activation_bytes=round(activations),
        allocator_bytes=round(ALLOCATOR_SHARE * activations),
    )


def _saved_by_block(
    config: ModelConfig, batch_size: int, length: int, low_precision: bool
) -> float:
    saved = SAVED_LOW if low_precision else SAVED
    per_value = saved.always
    if config.dropout:
        per_value += saved.dropout
    if config.aux_loss_weight:
        per_value += saved.aux_loss
    num_bytes = per_value * batch_size * length * config.width
    num_chunks = length // config.chunk_len
    if num_chunks:
        # What attention reads and the mask of who may read what; then the memory afterwards.
        num_keys = config.memory_levels[-1] + num_chunks
        num_values = num_keys * (batch_size * config.width + length)
        num_values += config.memory_levels[0] * batch_size * config.width
        num_bytes += FLOAT_BYTES * num_values
    return num_bytes


def _loss_bytes(config: ModelConfig, num_tokens: int) -> int:
    if not hasattr(functional, "linear_cross_entropy"):
        # The logits, their logarithms of shares, and the gradient.
        return 3 * FLOAT_BYTES * num_tokens * config.vocab_size
    # In pieces whose logits are about as large as what the head reads; and the head's gradient,
    # twice for a moment.
    return FLOAT_BYTES * config.width * (2 * num_tokens + 2 * config.vocab_size)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
