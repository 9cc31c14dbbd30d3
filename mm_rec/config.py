"""The model's configuration and the named presets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from mm_rec.errors import ConfigError

NORM_EPS = 1e-6
AUX_LOSS_WEIGHT = 0.1
AT_LEAST_ONE = (
    "width",
    "num_layers",
    "num_heads",
    "vocab_size",
    "max_seq_len",
    "gate_chunk_len",
    "chunk_len",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and rates of one MM-Rec model.

    Attributes:
        width: D, the width of the residual stream.
        num_layers: Number of blocks.
        num_heads: Heads of the memory attention; divides `width`.
        vocab_size: V, rows of the embedding and of the head tied to it.
        max_seq_len: Longest sequence this size is meant to be trained on, in tokens. The model
            has no positional encoding, so nothing breaks beyond it.
        dropout: Rate on both residual branches.
        aux_loss_weight: Weight of the auxiliary loss; 0 leaves it and its parameters out.
        gate_chunk_len: Tokens whose gates see the same state of the recurrence; 1 is the exact
            model, more a deviation that saves time.
        chunk_len: Tokens between two writes to the memory.
        memory_levels: Slots per level of the memory, finest first; each divides the one before.

    Raises:
        ConfigError: A size is not positive, or two sizes do not fit each other.
    """

    width: int
    num_layers: int
    num_heads: int
    vocab_size: int
    max_seq_len: int
    dropout: float = 0.1
    aux_loss_weight: float = 0.0
    gate_chunk_len: int = 1
    chunk_len: int = 128
    memory_levels: tuple[int, ...] = (1024, 256, 64)

    def __post_init__(self) -> None:
        """Check every field and how they fit together."""
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.aux_loss_weight < 0.0:
            raise ConfigError(f"aux_loss_weight must not be negative, got {self.aux_loss_weight}")
        if self.width % self.num_heads:
            raise ConfigError(
                f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}"
            )
        if self.width % 4:
            raise ConfigError(f"width must be a multiple of 4 (decay gates), got {self.width}")
        self._check_memory()

    def _check_memory(self) -> None:
        levels = self.memory_levels
        if not levels or min(levels) < 1 or any(a % b for a, b in pairwise(levels)):
            raise ConfigError(
                f"memory_levels must be positive, each a divisor of the one before, got {levels}"
            )
        if self.chunk_len % self.slots_per_chunk:
            raise ConfigError(
                f"chunk_len must be a multiple of memory_levels[0] / memory_levels[-1] = "
                f"{self.slots_per_chunk}, got {self.chunk_len}"
            )

    @property
    def slots_per_chunk(self) -> int:
        """Finest slots that one chunk fills: as many as make up one slot of the top level."""
        return self.memory_levels[0] // self.memory_levels[-1]


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(width=128, num_layers=4, num_heads=4, vocab_size=5_000, max_seq_len=1_024),
    "mini": ModelConfig(width=256, num_layers=6, num_heads=4, vocab_size=10_000, max_seq_len=2_048),
    "small": ModelConfig(
        width=512, num_layers=8, num_heads=8, vocab_size=20_000, max_seq_len=4_096
    ),
    "base": ModelConfig(
        width=1_024, num_layers=12, num_heads=8, vocab_size=32_000, max_seq_len=8_192
    ),
}
