"""MM-Rec: a recurrent language model with a long memory, its data and its training."""

from mm_rec.checkpoint import load_model
from mm_rec.config import PRESETS, ModelConfig
from mm_rec.errors import CheckpointError, ConfigError, DataError, MmRecError, OutputError
from mm_rec.model import MMRec, Output, State

__all__ = [
    "PRESETS",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "MMRec",
    "MmRecError",
    "ModelConfig",
    "Output",
    "OutputError",
    "State",
    "load_model",
]
