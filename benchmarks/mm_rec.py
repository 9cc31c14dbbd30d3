"""How fast mm_rec trains, and how well: `python benchmarks/mm_rec.py`.

Prints, measured side by side in one run on this machine:
1. seconds per training step for each way to compute the recurrence, and the share of the machine's
   matrix-multiply rate that each reaches;
2. the loss curves of the plain and the fast recurrence, which should lie on each other;
3. a language-model comparison on the default text: n-grams, an LSTM, a Transformer and MM-Rec.

Nothing else should run meanwhile. The third part takes three times --minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

# This file has the package's own name: imports must start at the root, not beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.language_models import compare  # noqa: E402
from mm_rec import PRESETS, MMRec, ModelConfig, kernel, recurrence  # noqa: E402
from mm_rec.scan import plain_scan  # noqa: E402
from mm_rec.training import make_optimizer  # noqa: E402

SEQ_LEN = 512
GATE_CHUNK_LEN = 8
GEMM_SIZE = 2048
NUM_CURVE_STEPS = 60
# Where the report's step of 82 s was taken apart: the original's code, 2 cores, torch 2.13.
ORIGINAL_S_PER_STEP = 5.4
ORIGINAL_BATCH_SIZE = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to compute the recurrence and what surrounds it."""

    name: str
    gate_chunk_len: int = 1
    plain: bool = False
    with_kernel: bool = True
    compiled: bool = False
    bf16: bool = False


VARIANTS = (
    Variant(name="plain loop", plain=True),
    Variant(name="fast exact, no compiler", with_kernel=False),
    Variant(name="fast exact"),
    Variant(name=f"gates frozen for {GATE_CHUNK_LEN}", gate_chunk_len=GATE_CHUNK_LEN),
    Variant(name="fast exact + torch.compile", compiled=True),
    Variant(name="fast exact + bf16", bf16=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="steps of each kind (default: 7)")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="training time of each model (default: 10)"
    )
    parser.add_argument("--only", choices=("steps", "curves", "quality"), help="one part")
    args = parser.parse_args()
    if min(args.num_threads, args.repeats) < 1 or not args.minutes > 0:
        parser.error("--num-threads, --repeats and --minutes must be positive")
    torch.set_num_threads(args.num_threads)
    print(f"threads: {args.num_threads}, torch {torch.__version__}, tiny preset, T = {SEQ_LEN}")
    if args.only in (None, "steps"):
        compare_steps(args.repeats)
    if args.only in (None, "curves"):
        compare_curves()
    if args.only in (None, "quality"):
        compare(minutes=args.minutes, num_threads=args.num_threads)


class Step:
    """A model in training whose next step can be timed."""

    def __init__(self, variant: Variant, batch_size: int, config: ModelConfig) -> None:
        torch.manual_seed(0)
        self.variant = variant
        self.config = dataclasses.replace(config, gate_chunk_len=variant.gate_chunk_len)
        self.model = MMRec(self.config)
        if variant.compiled:
            for block in self.model.blocks:
                block.compile()
        self.optimizer = make_optimizer(self.model, weight_decay=0.1)
        self.tokens_bt = torch.randint(0, config.vocab_size, (batch_size, SEQ_LEN + 1))
        self.times_s: list[float] = []

    def run(self) -> float:
        """Do a step and return its loss; the optimizer's learning rate is its own 0."""
        with chosen(self.variant):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.variant.bf16):
                inputs_bt, labels_bt = self.tokens_bt[:, :-1], self.tokens_bt[:, 1:]
                loss = self.model(inputs_bt).cross_entropy(labels_bt)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()

    def time(self) -> None:
        """Do a step and note how long it took."""
        start_s = time.perf_counter()
        self.run()
        self.times_s.append(time.perf_counter() - start_s)


@contextlib.contextmanager
def chosen(variant: Variant) -> Iterator[None]:
    """Put the variant's recurrence in the place of the usual one."""
    scan, load = recurrence.scan, kernel.load
    try:
        if variant.plain:
            recurrence.scan = lambda *inputs, **_: plain_scan(*inputs)  # type: ignore[assignment]
        if not variant.with_kernel:
            kernel.load = lambda _: None  # type: ignore[assignment]
        yield
    finally:
        recurrence.scan, kernel.load = scan, load


def compare_steps(repeats: int) -> None:
    rate = matrix_multiply_rate()
    print(f"\n1. Seconds per training step (matrix multiply: {rate / 1e9:.0f} GFLOP/s)")
    config = PRESETS["tiny"]
    first = None
    for batch_size in (2, 8, 32):
        steps = [Step(variant, batch_size, config) for variant in VARIANTS]
        for step in steps:
            # Warm-up, compilation included.
            step.run()
            step.run()
        # In turn, so that a drift of the machine hits all alike.
        for _ in range(repeats):
            for step in steps:
                step.time()
        num_tokens = batch_size * SEQ_LEN
        first = first or statistics.median(steps[0].times_s) / num_tokens
        print(f"batch {batch_size}")
        for step in steps:
            median_s = statistics.median(step.times_s)
            share = flop_per_token(step.config) * num_tokens / median_s / rate
            print(
                f"  {step.variant.name:28} {median_s:7.3f} s ({min(step.times_s):.3f} to "
                f"{max(step.times_s):.3f})  {num_tokens / median_s:7,.0f} tokens/s  "
                f"{share:4.0%} of the rate  {first / (median_s / num_tokens):5.1f} x plain at 2",
                flush=True,
            )
        if batch_size == ORIGINAL_BATCH_SIZE:
            print(f"  (the original's code on a 2-core machine: {ORIGINAL_S_PER_STEP} s)")


def flop_per_token(config: ModelConfig) -> float:
    """Return the operations of the matrix products of one step, per token.

    Forward and backward: three times two operations for each multiply-accumulate.
    """
    width, slots = config.width, config.memory_levels[-1] + SEQ_LEN // config.chunk_len
    weights = (4 + 1 + 1 + 2 / config.gate_chunk_len + 2 + 8) * width**2
    per_block = weights + 2 * slots * width
    return 6.0 * (config.num_layers * per_block + config.vocab_size * width)


def matrix_multiply_rate() -> float:
    """Return the operations per second of a large float32 product, median of ten."""
    a, b = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    times_s = []
    for _ in range(12):
        start_s = time.perf_counter()
        torch.mm(a, b)
        times_s.append(time.perf_counter() - start_s)
    return 2.0 * GEMM_SIZE**3 / statistics.median(times_s[2:])


def compare_curves() -> None:
    print(f"\n2. Loss of the plain and the fast recurrence over {NUM_CURVE_STEPS} steps, dropout 0")
    plain, fast = (loss_curve(variant) for variant in (VARIANTS[0], VARIANTS[2]))
    for number in range(0, NUM_CURVE_STEPS, NUM_CURVE_STEPS // 6):
        print(f"  step {number:3}: {plain[number]:.6f} {fast[number]:.6f}")
    worst = max(abs(a - b) / a for a, b in zip(plain, fast, strict=True))
    print(f"  largest relative difference: {worst:.1e}", flush=True)


def loss_curve(variant: Variant) -> list[float]:
    step = Step(variant, 4, dataclasses.replace(PRESETS["tiny"], dropout=0.0, vocab_size=300))
    for group in step.optimizer.param_groups:
        group["lr"] = 1e-3
    sources = sorted(Path(statistics.__file__).parent.glob("*.py"))
    text = b"".join(source.read_bytes() for source in sources)[
        : NUM_CURVE_STEPS * 4 * (SEQ_LEN + 1)
    ]
    losses = []
    for tokens_bt in torch.tensor(list(text)).view(NUM_CURVE_STEPS, 4, SEQ_LEN + 1):
        step.tokens_bt = tokens_bt
        losses.append(step.run())
    return losses


if __name__ == "__main__":
    main()
