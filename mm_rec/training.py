"""The training step and the loop around it.

Shapes: B batch, T time, P tokens of a piece, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import autotune
from mm_rec.checkpoint import Position
from mm_rec.data.sampler import WindowOrder
from mm_rec.model import MMRec, State
from mm_rec.schedule import Schedule

ADAM_BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 1.0


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
