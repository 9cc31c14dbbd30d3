"""The training step, the loop around it, the learning rate, and the loss on held-out text.

Shapes: B batch, T time, P tokens of a piece, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import autotune
from mm_rec.checkpoint import Position
from mm_rec.data.windows import WindowDataset, WindowOrder
from mm_rec.errors import ConfigError
from mm_rec.model import MMRec, State

ADAM_BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 1.0
FINAL_SHARE = 0.1
DEFAULT_WARMUP_STEPS = 100
# Of validation: independent of the training's batch size, so that the figure is too.
BATCH_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a cosine down to a tenth of the peak.

    A function of the step and of nothing else, so that resuming needs the step alone.

    Attributes:
        peak_lr: Learning rate at the end of the warm-up.
        warmup_steps: Optimizer steps of linear growth.
        total_steps: Optimizer steps of the whole run; the rate stays at its final value beyond.

    Raises:
        ConfigError: The peak is not positive or a number of steps is negative.
    """

    peak_lr: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (math.isfinite(self.peak_lr) and self.peak_lr > 0.0):
            raise ConfigError(f"lr must be a positive number, got {self.peak_lr}")
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must not be negative, got {self.warmup_steps}")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of the optimizer step number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        decay_steps = max(1, self.total_steps - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / decay_steps)
        share = FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * done))
        return self.peak_lr * share


def default_warmup_steps(total_steps: int) -> int:
    """Return a tenth of the run, at most `DEFAULT_WARMUP_STEPS`."""
    return min(DEFAULT_WARMUP_STEPS, total_steps // 10)


def make_optimizer(model: nn.Module, *, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on the matrices of the blocks only.

    Biases, norms, the embedding (which is also the head) and the initial memory are not decayed.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and not name.endswith(("embedding.weight", "initial_sd"))
        (decayed if is_matrix else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # The learning rate is set before each step.
    return torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS, fused=True)


def split_windows(windows_bt: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and labels, [B, T] each, of windows of T + 1 ids: the one label shift."""
    return windows_bt[:, :-1], windows_bt[:, 1:]


def tokens(windows_bt: Tensor) -> int:
    """Return the number of tokens that a batch of windows trains on."""
    return windows_bt.shape[0] * (windows_bt.shape[1] - 1)


class Trainer:
    """Micro-steps, and an optimizer step after every few of them."""

    def __init__(
        self,
        model: MMRec,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        gradient_accumulation_steps: int,
        bptt_len: int | None = None,
        low_precision: bool = False,
        step: int = 0,
    ) -> None:
        """Train `model` on the device that it is on.

        Args:
            model: Carries its state through each sample.
            optimizer: Of its parameters.
            schedule: The learning rate of each step.
            gradient_accumulation_steps: Micro-steps per optimizer step.
            bptt_len: Tokens that gradients flow back over; memory grows with it instead of with
                the length of a sample. None: the whole sample.
            low_precision: Multiply matrices in bfloat16 (autocast).
            step: Optimizer steps that are done already.
        """
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.bptt_len = bptt_len
        self.low_precision = low_precision
        self.step = step
        self.device = next(model.parameters()).device
        self.loss = torch.zeros((), device=self.device)
        """Mean cross-entropy of the last optimizer step, in nats per token."""
        self.grad_norm = torch.zeros(())
        """Norm of the last optimizer step's gradient before clipping."""
        self._num_micro_steps = 0
        self._micro_loss = torch.zeros((), device=self.device)

    @property
    def lr(self) -> float:
        """Learning rate of the last optimizer step."""
        return self.schedule.lr_at(max(0, self.step - 1))

    def micro_step(self, windows_bt: Tensor) -> bool:
        """Train on one batch; return whether it completed an optimizer step."""
        inputs_bt, labels_bt = split_windows(windows_bt.to(self.device, non_blocking=True))
        length = inputs_bt.shape[1]
        piece_len = self.bptt_len or length
        state = None
        for inputs_bp, labels_bp in zip(
            torch.split(inputs_bt, piece_len, 1), torch.split(labels_bt, piece_len, 1), strict=True
        ):
            state = self._train_on_piece(inputs_bp, labels_bp, state, inputs_bp.shape[1] / length)
        self._num_micro_steps += 1
        if self._num_micro_steps < self.gradient_accumulation_steps:
            return False
        self._optimizer_step()
        return True

    def _train_on_piece(
        self, inputs_bp: Tensor, labels_bp: Tensor, state: State | None, share: float
    ) -> State:
        """Add the gradients of a piece, `share` of its samples, and return the state after it."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            output = self.model(inputs_bp, state)
            loss = output.cross_entropy(labels_bp)
            self._micro_loss = self._micro_loss + share * loss.detach()
            if output.aux_loss is not None:
                loss = loss + self.model.config.aux_loss_weight * output.aux_loss
        torch.autograd.backward(loss * (share / self.gradient_accumulation_steps))
        after: State = output.state.detach()
        return after

    def _optimizer_step(self) -> None:
        self.grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss = self._micro_loss / self.gradient_accumulation_steps
        self._micro_loss = torch.zeros((), device=self.device)
        self._num_micro_steps = 0


def train(
    trainer: Trainer,
    loader: Iterable[Tensor],
    order: WindowOrder,
    *,
    position: Position,
    epochs: int,
    effective_batch_size: int,
    after_step: Callable[[Position], bool],
) -> Position:
    """Train from `position` on and return where training ended.

    Args:
        trainer: Does the steps.
        loader: Gives batches of windows in the order of `order`.
        order: Is set to each epoch in turn.
        position: Where to start.
        epochs: Passes over the data in all.
        effective_batch_size: Samples per optimizer step.
        after_step: Called after every optimizer step; true ends the training.
    """
    trainer.model.train()
    for epoch in range(position.epoch, epochs):
        order.seek(epoch=epoch, start=position.sample)
        for windows_bt in autotune.steps(loader, units=tokens):
            if not trainer.micro_step(windows_bt):
                continue
            position = position.after_step(effective_batch_size)
            if after_step(position):
                return position
        position = position.next_epoch()
    return position


@torch.no_grad()
def validation_loss(
    model: MMRec,
    dataset: WindowDataset,
    *,
    num_samples: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return the mean loss in nats per token, or None when it was cancelled on the way.

    Args:
        model: Left in training mode.
        dataset: Held-out windows.
        num_samples: At most so many, evenly spread: always the same ones.
        cancelled: Asked between batches.
    """
    chosen = np.linspace(0, len(dataset) - 1, min(num_samples, len(dataset))).round().astype(int)
    total = 0.0
    device = next(model.parameters()).device
    model.eval()
    try:
        for start in range(0, len(chosen), BATCH_SIZE):
            if cancelled():
                return None
            batch = chosen[start : start + BATCH_SIZE].tolist()
            windows_bt = torch.stack([dataset[i] for i in batch])
            inputs_bt, labels_bt = split_windows(windows_bt.to(device))
            loss = model(inputs_bt).cross_entropy(labels_bt)
            total += loss.item() * len(batch)
    finally:
        model.train()
    return total / len(chosen)
