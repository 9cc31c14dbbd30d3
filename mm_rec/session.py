"""What an ordinary run does after each optimizer step: log, validate, save, stop.

A run that autotune measures has no session and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mm_rec import checkpoint
from mm_rec.checkpoint import Position
from mm_rec.data.windows import WindowDataset
from mm_rec.interruption import Interruption
from mm_rec.options import Options
from mm_rec.run_log import FILE_NAME, MetricsFile, ProgressLine, StepClock
from mm_rec.training import Trainer, validation_loss

# Steps averaged for the first and the last training loss that a run prints.
NUM_LOSS_STEPS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The fixed figures of a run.

    Attributes:
        total_steps: Optimizer steps in all.
        samples_per_step: Samples per optimizer step.
        tokens_per_step: Tokens per optimizer step.
        validation_bytes_per_token: UTF-8 bytes that a held-out token stands for, on average.
        directory: Where metrics and checkpoint go.
    """

    total_steps: int
    samples_per_step: int
    tokens_per_step: int
    validation_bytes_per_token: float
    directory: Path


class Session:
    """Keeps the run's records; `after_step` is the training loop's callback."""

    def __init__(
        self,
        plan: RunPlan,
        options: Options,
        trainer: Trainer,
        *,
        validation: WindowDataset | None,
        snapshot: Callable[[Position], checkpoint.Checkpoint],
        interruption: Interruption,
        position: Position,
    ) -> None:
        """Open the metrics file and start the clock; `snapshot` makes a checkpoint."""
        self.plan = plan
        self.options = options
        self.trainer = trainer
        self.validation = validation
        self.snapshot = snapshot
        self.interruption = interruption
        self.metrics = MetricsFile(plan.directory / FILE_NAME, keep_up_to_step=position.step)
        self.progress = ProgressLine()
        self.clock = StepClock()
        self._pending: list[Tensor] = []
        self._losses: list[float] = []
        self._saved_step = -1

    def after_step(self, position: Position) -> bool:
        """Record an optimizer step; return whether training should end."""
        self.clock.mark()
        self._pending.append(self.trainer.loss)
        step = position.step
        if step % self.options.log_every == 0:
            self._log(step)
        if self.progress.due():
            self._show(step)
        ends = step >= self.plan.total_steps or self.interruption.received is not None
        if not ends:
            with self.clock.paused():
                if self.options.checkpoint_every and step % self.options.checkpoint_every == 0:
                    self._save(position)
                if self.options.val_every and step % self.options.val_every == 0:
                    self._validate(step)
        # A signal may have come while validating.
        return ends or self.interruption.received is not None

    def finish(self, position: Position) -> None:
        """Write what is left, validate unless interrupted, save, and print the summary."""
        if self._pending:
            self._log(position.step)
        if self.clock.num_steps and self._saved_step != position.step:
            self._save(position)
        if self.clock.num_steps and self.interruption.received is None:
            self._validate(position.step)
        self.progress.close()
        self.metrics.close()
        self._summarise(position)

    def _log(self, step: int) -> None:
        """Write a metrics line with the mean loss of the steps since the last one."""
        losses = torch.stack(self._pending).tolist()
        seconds = self.clock.seconds_per_step(len(losses))
        self._pending = []
        self._losses += losses
        self.metrics.write(
            step=step,
            loss=sum(losses) / len(losses),
            lr=self.trainer.lr,
            grad_norm=self.trainer.grad_norm.item(),
            samples_per_s=round(self.plan.samples_per_step / seconds, 3),
            tokens_per_s=round(self.plan.tokens_per_step / seconds, 1),
        )

    def _show(self, step: int) -> None:
        self.progress.show(
            step=step,
            total_steps=self.plan.total_steps,
            loss=self.trainer.loss.item(),
            seconds_per_step=self.clock.seconds_per_step(50),
            tokens=self.plan.tokens_per_step,
        )

    def _validate(self, step: int) -> None:
        if self.validation is None:
            return
        loss = validation_loss(
            self.trainer.model,
            self.validation,
            num_samples=self.options.val_samples,
            cancelled=lambda: self.interruption.received is not None,
        )
        if loss is None:
            return
        # Per byte of text, so that models with different tokenizers can be compared.
        bits = loss / math.log(2.0) / self.plan.validation_bytes_per_token
        self.metrics.write(step=step, val_loss=loss, bits_per_byte=bits)
        self.progress.close()
        print(f"step {step}: validation loss {loss:.4f}, {bits:.3f} bits per byte")

    def _save(self, position: Position) -> None:
        self.snapshot(position).save(self.plan.directory / checkpoint.FILE_NAME)
        self._saved_step = position.step

    def _summarise(self, position: Position) -> None:
        if self.interruption.received is not None:
            print(f"interrupted by {self.interruption.received.name} after step {position.step}")
        if self._losses:
            count = min(NUM_LOSS_STEPS, max(1, len(self._losses) // 2))
            first, last = self._losses[:count], self._losses[-count:]
            print(
                f"training loss: {sum(first) / count:.4f} at first, {sum(last) / count:.4f} at "
                f"last (means over {count} steps)"
            )
        print(f"checkpoint and metrics: {self.plan.directory}")
        # Validation and checkpoints are not part of it: they cost what the user asks of them,
        # and no setting of the loop changes that.
        print(
            self.clock.sustained(
                samples_per_step=self.plan.samples_per_step,
                tokens_per_step=self.plan.tokens_per_step,
            ),
            flush=True,
        )
