"""MM-Rec beside an LSTM, a Transformer and n-gram models of the same text.

The neural models have the same size, the same windows in the same order and the same seconds of
training, in alternating slices within one process, so that whatever else the machine does hits
all of them alike.

Shapes: B batch, T time, N windows.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.baselines import CharLSTM, CharTransformer, count_parameters, sized
from benchmarks.ngram import Ids, ngram_bits_per_token
from mm_rec import PRESETS, MMRec, data
from mm_rec.training import MAX_GRAD_NORM, make_optimizer, split_windows

NGRAM_ORDERS = (1, 5)
SEQ_LEN = 256
SEED = 0
WEIGHT_DECAY = 0.1
WARMUP_SHARE = 0.05
FINAL_SHARE = 0.1
# The same search for each: 655,360 tokens with the whole schedule on one thread, then the bits per
# byte of 256 held-out windows (torch 2.13, AMD EPYC). By tokens, for the machine was shared:
#
#                 peak learning rate, batch 8    batch 16 at
#                  0.001     0.003     0.01      the best rate
#   LSTM           2.588     2.317     2.285         2.396
#   Transformer    2.634     2.494     2.963         2.756
#   MM-Rec           -       2.265     2.208           -
#
# Twice the batch made none of them faster, and halves the steps.
PEAK_LR = {"LSTM": 0.01, "Transformer": 0.003, "MM-Rec": 0.01}
BATCH_SIZE = 8
NUM_HELD_OUT = 1_024
# Progress is measured on every eighth of them, so that it takes little of the wall-clock time.
PROGRESS_STRIDE = 8
EVALUATION_BATCH_SIZE = 16

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Model, inputs [B, T] and labels [B, T] to the mean cross-entropy in nats per token."""


def logits_loss(model: nn.Module, inputs_bt: Tensor, labels_bt: Tensor) -> Tensor:
    """Return the loss of a model that gives the scores themselves."""
    return functional.cross_entropy(model(inputs_bt).flatten(0, 1), labels_bt.flatten())


def mm_rec_loss(model: nn.Module, inputs_bt: Tensor, labels_bt: Tensor) -> Tensor:
    """Return MM-Rec's loss; its scores exist as a whole, as those of the others do."""
    return functional.cross_entropy(model(inputs_bt).logits_btv.flatten(0, 1), labels_bt.flatten())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contender:
    """A model and how it is trained."""

    name: str
    model: nn.Module
    peak_lr: float
    batch_size: int
    loss: Loss = logits_loss


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """Held-out windows of T + 1 ids, each read from a fresh state, and what they say.

    Attributes:
        windows_nt: [N, T + 1]; the first id of each is given, the T others are scored.
        num_bytes: UTF-8 length of the ids that are scored.
    """

    windows_nt: Tensor
    num_bytes: int

    @property
    def tokens_per_byte(self) -> float:
        """Turns bits per character into bits per byte."""
        return self.windows_nt[:, 1:].numel() / self.num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A line of the table; an n-gram model has neither parameters nor a speed."""

    name: str
    bits_per_char: float
    bits_per_byte: float
    num_parameters: int | None = None
    num_tokens: int | None = None
    tokens_per_s: float | None = None


def hold_out(prepared: data.PreparedData, *, seq_len: int, num_windows: int) -> HeldOut:
    """Return windows spread evenly over the held-out ids: always the same ones."""
    assert prepared.validation is not None
    windows = data.WindowDataset(prepared.validation, seq_len=seq_len)
    num_windows = min(num_windows, len(windows))
    chosen = np.linspace(0, len(windows) - 1, num_windows).round().astype(int)
    windows_nt = torch.stack([windows[index] for index in chosen.tolist()])
    text = prepared.tokenizer.decode(windows_nt[:, 1:].flatten().tolist())
    return HeldOut(windows_nt=windows_nt, num_bytes=len(text.encode("utf-8", "surrogatepass")))


class _Training:
    """One contender's training, which goes on for a slice of time whenever it is asked to."""

    def __init__(
        self, contender: Contender, windows: data.WindowDataset, *, budget_s: float
    ) -> None:
        self.contender = contender
        self.optimizer = make_optimizer(contender.model, weight_decay=WEIGHT_DECAY)
        self.budget_s = budget_s
        self.used_s = 0.0
        self.num_tokens = 0
        self._batches = _batches(windows, contender.batch_size)
        self._get_ready(torch.stack([windows[i] for i in range(contender.batch_size)]))

    def train_until(self, used_s: float) -> None:
        """Train until so many seconds are used in all."""
        self.contender.model.train()
        start_s = time.perf_counter() - self.used_s
        while self.used_s < used_s:
            self._step(next(self._batches))
            self.used_s = time.perf_counter() - start_s

    def _step(self, windows_bt: Tensor) -> None:
        self._backward(windows_bt)
        nn.utils.clip_grad_norm_(self.contender.model.parameters(), MAX_GRAD_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = self.contender.peak_lr * lr_share(self.used_s / self.budget_s)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_tokens += windows_bt[:, 1:].numel()

    def _backward(self, windows_bt: Tensor) -> None:
        loss = self.contender.loss(self.contender.model, *split_windows(windows_bt))
        torch.autograd.backward(loss)

    def _get_ready(self, windows_bt: Tensor) -> None:
        """Run once without a step: what is set up or compiled at first use is not training."""
        self._backward(windows_bt)
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def bits_per_token(self, windows_nt: Tensor) -> float:
        """Return the mean over held-out windows."""
        self.contender.model.eval()
        nats = 0.0
        for windows_bt in torch.split(windows_nt, EVALUATION_BATCH_SIZE):
            loss = self.contender.loss(self.contender.model, *split_windows(windows_bt))
            nats += loss.item() * len(windows_bt)
        return nats / len(windows_nt) / math.log(2)


def lr_share(progress: float) -> float:
    """Return the share of the peak: linear warm-up, then a cosine, over the time budget."""
    if progress < WARMUP_SHARE:
        # Not from 0 on: the first step would do nothing.
        return max(0.01, progress / WARMUP_SHARE)
    done = min(1.0, (progress - WARMUP_SHARE) / (1.0 - WARMUP_SHARE))
    return FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * done))


def _batches(windows: data.WindowDataset, batch_size: int) -> Iterator[Tensor]:
    """Yield batches without end, in an order of windows that the batch size does not change."""
    order = data.WindowOrder(len(windows), effective_batch_size=batch_size, seed=SEED)
    epoch = 0
    while True:
        order.seek(epoch=epoch)
        indices = list(order)
        for start in range(0, len(indices), batch_size):
            yield torch.stack([windows[i] for i in indices[start : start + batch_size]])
        epoch += 1


def train_side_by_side(
    contenders: Sequence[Contender],
    windows: data.WindowDataset,
    held_out: HeldOut,
    *,
    budget_s: float,
    slice_s: float = 30.0,
    num_threads: int = 2,
) -> tuple[Result, ...]:
    """Train each for `budget_s` seconds of its own, in slices in turn, and compare them.

    Args:
        contenders: Trained in place.
        windows: What all of them train on, in one order.
        held_out: What all of them are measured on, outside their time.
        budget_s: Seconds of training for each.
        slice_s: Seconds until it is the next one's turn.
        num_threads: Threads of torch.
    """
    torch.set_num_threads(num_threads)
    trainings = [_Training(contender, windows, budget_s=budget_s) for contender in contenders]
    progress_nt = held_out.windows_nt[::PROGRESS_STRIDE]
    for number in range(1, math.ceil(budget_s / slice_s) + 1):
        for training in trainings:
            training.train_until(min(budget_s, number * slice_s))
            bits = training.bits_per_token(progress_nt) * held_out.tokens_per_byte
            print(
                f"{training.contender.name:12} {training.used_s:6.0f} s "
                f"{training.num_tokens:12,} tokens  {bits:.3f} bits per byte",
                flush=True,
            )
    return tuple(_result(training, held_out) for training in trainings)


def _result(training: _Training, held_out: HeldOut) -> Result:
    bits = training.bits_per_token(held_out.windows_nt)
    return Result(
        name=training.contender.name,
        bits_per_char=bits,
        bits_per_byte=bits * held_out.tokens_per_byte,
        num_parameters=count_parameters(training.contender.model),
        num_tokens=training.num_tokens,
        tokens_per_s=training.num_tokens / training.used_s,
    )


def make_contenders(vocab_size: int) -> tuple[Contender, ...]:
    """Return MM-Rec tiny, and an LSTM and a Transformer of its size, all without dropout.

    In ten minutes none of them sees a text twice, so there is nothing to overfit.
    """
    torch.manual_seed(SEED)
    config = dataclasses.replace(PRESETS["tiny"], vocab_size=vocab_size, dropout=0.0)
    mm_rec = MMRec(config)
    size = count_parameters(mm_rec)
    lstm = sized(lambda width: CharLSTM(vocab_size=vocab_size, width=width), num_parameters=size)
    transformer = sized(
        lambda width: CharTransformer(vocab_size=vocab_size, width=width), num_parameters=size
    )
    return (
        _contender("LSTM", lstm, logits_loss),
        _contender("Transformer", transformer, logits_loss),
        _contender("MM-Rec", mm_rec, mm_rec_loss),
    )


def _contender(name: str, model: nn.Module, loss: Loss) -> Contender:
    return Contender(
        name=name, model=model, loss=loss, peak_lr=PEAK_LR[name], batch_size=BATCH_SIZE
    )


def compare(minutes: float, num_threads: int) -> None:
    """Print the table: n-gram models, and the neural ones after `minutes` of training each."""
    prepared = data.prepare(data.read_corpus(), vocab_size=PRESETS["tiny"].vocab_size)
    held_out = hold_out(prepared, seq_len=SEQ_LEN, num_windows=NUM_HELD_OUT)
    train_ids = prepared.train.window(0, len(prepared.train))
    # The ids in use, not the preset's: rows that never occur would only count as parameters.
    vocab_size = prepared.tokenizer.vocab_size
    results = [
        _ngram_result(train_ids, held_out, order=order, vocab_size=vocab_size)
        for order in NGRAM_ORDERS
    ]
    results += train_side_by_side(
        make_contenders(vocab_size),
        data.WindowDataset(prepared.train, seq_len=SEQ_LEN),
        held_out,
        budget_s=60.0 * minutes,
        num_threads=num_threads,
    )
    print_table(results)


def _ngram_result(train_ids: Ids, held_out: HeldOut, *, order: int, vocab_size: int) -> Result:
    bits = ngram_bits_per_token(
        train_ids, held_out.windows_nt.numpy(), order=order, vocab_size=vocab_size
    )
    return Result(
        name="unigram" if order == 1 else f"{order}-gram",
        bits_per_char=bits,
        bits_per_byte=bits * held_out.tokens_per_byte,
        num_tokens=len(train_ids),
    )


def print_table(results: Sequence[Result]) -> None:
    columns = ("parameters", "tokens seen", "tokens/s", "bits/char", "bits/byte")
    print(f"\n{'':12}" + "".join(f"{column:>14}" for column in columns))
    for result in results:
        numbers = (result.num_parameters, result.num_tokens, result.tokens_per_s)
        cells = ["" if number is None else f"{number:,.0f}" for number in numbers]
        cells += [f"{result.bits_per_char:.3f}", f"{result.bits_per_byte:.3f}"]
        print(f"{result.name:12}" + "".join(f"{cell:>14}" for cell in cells))
