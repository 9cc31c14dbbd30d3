"""The training command's options: defaults, parsing, and which were given by hand."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_rec.arguments import Parser, at_least, number, rate, seed
from mm_rec.config import PRESETS
from mm_rec.errors import ConfigError

RESUME_FROM_OUTPUT_DIR = ""
# Sizes of the model that can be given in place of the preset's.
SIZES = ("width", "num_layers", "num_heads", "chunk_len", "memory_levels")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `python -m mm_rec.train`; the defaults are the baseline to tune from.

    `--help` says what each means. `given` holds the names of those that were set by hand, as
    opposed to left at their defaults.
    """

    preset: str = "tiny"
    width: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    chunk_len: int | None = None
    memory_levels: tuple[int, ...] | None = None
    data: tuple[str, ...] = ()
    text_field: str = "text"
    tokenizer: str = "char"
    vocab_size: int | None = None
    tokenize: str = "ahead"
    stream: bool = False
    cache_dir: str | None = None
    seq_len: int = 512
    stride: int | None = None
    batch_size: int = 2
    effective_batch_size: int | None = None
    num_workers: int = 0
    prefetch_factor: int | None = None
    num_threads: int | None = None
    device: str = "cpu"
    bf16: bool = False
    lr: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int | None = None
    max_steps: int | None = None
    epochs: int = 1
    dropout: float = 0.1
    aux_loss: bool = False
    bptt_len: int | None = None
    gate_chunk_len: int = 1
    val_split: float = 0.1
    val_every: int = 200
    val_samples: int = 128
    log_every: int = 10
    checkpoint_every: int = 100
    output_dir: str | None = None
    resume: str | None = None
    seed: int = 0
    config: str | None = None
    dry_run: bool = False
    given: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {"data": [_absolute(path) for path in self.data], "given": sorted(self.given)}
        for name in ("config", "cache_dir"):
            if values[name] is not None:
                values[name] = _absolute(values[name])
        return values

    def with_values(self, **values: Any) -> Options:  # noqa: ANN401
        """Return these options with some values replaced."""
        return dataclasses.replace(self, **values)

    def over(self, stored: dict[str, Any]) -> Options:
        """Return the stored options with those of `self` that were given by hand on top.

        Raises:
            ConfigError: The stored options are not those of this version.
        """
        known = {f.name for f in dataclasses.fields(self)}
        if set(stored) != known:
            names = ", ".join(sorted(set(stored) ^ known))
            raise ConfigError(f"the checkpoint's options are of another version: {names}")
        merged = stored | {name: getattr(self, name) for name in self.given}
        merged["data"] = tuple(merged["data"])
        merged["given"] = frozenset(stored["given"]) | self.given
        merged["resume"] = self.resume
        merged["output_dir"] = self.output_dir
        return Options(**merged)


def _absolute(path: str) -> str:
    # A run may be resumed from another working directory.
    return str(Path(path).absolute())


def parse(argv: Sequence[str] | None = None) -> Options:
    """Parse a command line.

    Raises:
        ConfigError: An option is unknown, malformed or out of range.
    """
    values = vars(_parser().parse_args(argv))
    given = frozenset(values)
    for name in {"data", "memory_levels"} & given:
        values[name] = tuple(values[name])
    return Options(**values, given=given)


def _parser() -> argparse.ArgumentParser:
    # SUPPRESS leaves out what was not given, so that the defaults live in Options alone and the
    # namespace says which options were set by hand.
    parser = Parser(
        prog="python -m mm_rec.train",
        description="Train an MM-Rec language model. Steps are optimizer steps throughout.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done, 2 bad input, 130 Ctrl-C, 143 SIGTERM (a checkpoint is kept).",
    )
    _add_data(parser)
    _add_throughput(parser)
    _add_recipe(parser)
    _add_output(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="files or directories of .txt, .jsonl, and .gz of these "
        "(default: the sources of Python's standard library)",
    )
    group.add_argument("--text-field", help="field of a .jsonl object with its text (text)")
    group.add_argument(
        "--tokenizer",
        choices=("char", "byte", "bpe"),
        help="characters, bytes, or byte pairs, which need autotune[bpe] (char)",
    )
    group.add_argument(
        "--vocab-size", type=at_least(3), help="most ids of char and bpe (the preset's)"
    )
    group.add_argument(
        "--tokenize",
        choices=("ahead", "on-the-fly"),
        help="encode once into cached files, for corpora of any size, or keep the text in memory "
        "and encode each sample when it is loaded (ahead)",
    )
    group.add_argument("--stream", action="store_true", help="read as an iterable dataset")
    group.add_argument("--cache-dir", help="encoded data ($XDG_CACHE_HOME/mm_rec)")
    group.add_argument("--seq-len", type=at_least(1), help="tokens per sample (512)")
    group.add_argument("--stride", type=at_least(1), help="between samples (--seq-len)")
    group.add_argument("--val-split", type=rate, help="share of the text held out (0.1)")


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("throughput (what is tuned; these win over --config)")
    group.add_argument("--config", metavar="FILE", help="tuned settings, best_config.yaml")
    group.add_argument("--batch-size", type=at_least(1), help="samples per micro-step (2)")
    group.add_argument("--num-workers", type=at_least(0), help="loader processes (0)")
    group.add_argument("--prefetch-factor", type=at_least(1), help="batches ahead per worker")
    group.add_argument("--num-threads", type=at_least(1), help="intra-op threads (torch's)")
    group.add_argument("--device", choices=("cpu", "cuda"), help="(cpu)")
    group.add_argument(
        "--bf16",
        action="store_true",
        help="multiply matrices in bfloat16 (autocast); pays where the processor has it",
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe")
    group.add_argument("--preset", choices=tuple(PRESETS), help="size of the model (tiny)")
    group.add_argument("--width", type=at_least(1), help="(the preset's, as all sizes)")
    group.add_argument("--num-layers", type=at_least(1), help="blocks")
    group.add_argument("--num-heads", type=at_least(1), help="of the attention; divides --width")
    group.add_argument("--chunk-len", type=at_least(1), help="tokens per write to the memory")
    group.add_argument(
        "--memory-levels",
        type=at_least(1),
        nargs="+",
        metavar="SLOTS",
        help="slots per level, finest first, each a multiple of the next",
    )
    group.add_argument(
        "--effective-batch-size",
        type=at_least(1),
        help="samples per optimizer step; gradients are accumulated over micro-steps",
    )
    group.add_argument("--lr", type=number, help="peak learning rate (0.003)")
    group.add_argument("--weight-decay", type=number, help="of the matrices (0.1)")
    group.add_argument("--warmup-steps", type=at_least(0), help="(a tenth of the run, 100 at most)")
    group.add_argument("--max-steps", type=at_least(1), help="stop after so many")
    group.add_argument("--epochs", type=at_least(1), help="passes over the data (1)")
    group.add_argument("--dropout", type=rate, help="(0.1)")
    group.add_argument("--aux-loss", action="store_true", help="add the auxiliary loss")
    group.add_argument(
        "--bptt-len",
        type=at_least(1),
        help="tokens that gradients flow back over; the state is carried over the whole sample, "
        "so that a long --seq-len costs no more memory (--seq-len)",
    )
    group.add_argument(
        "--gate-chunk-len",
        type=at_least(1),
        help="tokens whose gates see the same state; more than 1 deviates from the model, "
        "and saves time (1: exact)",
    )
    group.add_argument("--seed", type=seed, help="(0)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output-dir", help="metrics and checkpoint (runs/DATE-TIME-PRESET)")
    group.add_argument(
        "--resume",
        nargs="?",
        const=RESUME_FROM_OUTPUT_DIR,
        metavar="PATH",
        help="go on from a checkpoint or from the directory of a run; without PATH from "
        "--output-dir. Options that are not given are the checkpoint's.",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="say what would be trained, and how large it is"
    )
    group.add_argument("--log-every", type=at_least(1), help="steps per metrics line (10)")
    group.add_argument("--val-every", type=at_least(0), help="0: at the end only (200)")
    group.add_argument("--val-samples", type=at_least(1), help="held-out samples used (128)")
    group.add_argument("--checkpoint-every", type=at_least(0), help="0: at the end only (100)")
