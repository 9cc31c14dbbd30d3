"""torchtitan's training, with autotune's two calls around its loader; the options are torchtitan's.

Train with `torchrun --nproc-per-node 8 examples/torchtitan_train.py --module llama3 ...`.
Tune with `python -m autotune run -- torchrun ...`, which writes best_config.yaml.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torchtitan.config import ConfigManager
from torchtitan.tools.logging import init_logger
from torchtitan.trainer import Trainer

import autotune


class TunedTrainer(Trainer):
    """A Trainer whose batches pass through autotune.steps."""

    def batch_generator(self, data_iterable: Iterable[Any]) -> Iterable[Any]:
        """Return the batches of one pass; `train` calls this once."""
        return super().batch_generator(autotune.steps(data_iterable))


def main() -> None:
    """Train; with the settings that were tuned, if there are any."""
    init_logger()
    job = ConfigManager().parse_args()
    loader = job.dataloader
    default = autotune.ThroughputConfig(
        batch_size=job.training.local_batch_size,
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        pin_memory=loader.pin_memory,
    )
    samples_per_step = job.training.global_batch_size
    config = autotune.load_config(
        "best_config.yaml",
        default=default,
        effective_batch_size=samples_per_step if samples_per_step > 0 else None,
    )
    job.training.local_batch_size = config.batch_size
    loader.num_workers = config.num_workers
    loader.prefetch_factor = config.prefetch_factor
    loader.persistent_workers = config.persistent_workers
    loader.pin_memory = config.pin_memory

    trainer = TunedTrainer(job)
    try:
        trainer.train()
    finally:
        trainer.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
