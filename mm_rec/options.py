"""Options of the command lines: dataclasses whose fields say how each is given."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mm_rec.config import PRESETS
from mm_rec.errors import ConfigError

RESUME_FROM_OUTPUT_DIR = ""
# Sizes of the model that can be given in place of the preset's.
SIZES = ("width", "num_layers", "num_heads", "chunk_len", "memory_levels")
_GROUPS = {
    "data": "data",
    "throughput": "throughput (what is tuned; these win over --config)",
    "recipe": "recipe",
    "output": "output",
}

OptionsT = TypeVar("OptionsT")


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of whole numbers from `minimum` on."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    return whole_number


def seed(text: str) -> int:
    """A seed of random numbers."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must lie in [0, 2^32), got {text}")
    return value


def number_below(limit: float) -> Callable[[str], float]:
    """The type of numbers from 0 on, below a limit."""

    def number(text: str) -> float:
        value = float(text)
        if not 0.0 <= value < limit:
            raise argparse.ArgumentTypeError(f"must lie in [0, {limit:g}), got {text}")
        return value

    return number


POSITIVE, COUNT, SHARE, NUMBER = at_least(1), at_least(0), number_below(1.0), number_below(math.inf)


def option(
    group: str,
    default: Any,  # noqa: ANN401
    text: str,
    kind: Callable[[str], Any] | None = None,
    **argument: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """A field that is an option of a command line.

    Args:
        group: Of options, in the help.
        default: Of the field; the help names it.
        text: What the help says.
        kind: Makes the value of a text; None takes the text.
        argument: See `argparse.ArgumentParser.add_argument`.
    """
    if kind is not None:
        argument["type"] = kind
    if isinstance(default, int | float | str) and default not in (False, ""):
        text = f"{text} ({default})".strip()
    return dataclasses.field(
        default=default, metadata={"group": group, "argument": argument | {"help": text}}
    )


_data, _throughput, _recipe, _output = (
    functools.partial(option, group) for group in ("data", "throughput", "recipe", "output")
)


class Parser(argparse.ArgumentParser):
    """Reports bad options as every other bad input is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{message} (--help lists the options)")


def make_parser(kind: type, **texts: str) -> Parser:
    """A parser for the fields of a dataclass; what is not given is left out of its namespace."""
    parser = Parser(
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **texts,  # type: ignore[arg-type]
    )
    groups: dict[str, Any] = {"": parser}
    for field in dataclasses.fields(kind):
        if "group" not in field.metadata:
            continue
        name, argument = field.metadata["group"], dict(field.metadata["argument"])
        group = groups.get(name)
        if group is None:
            group = groups[name] = parser.add_argument_group(_GROUPS[name])
        if field.default is False:
            argument["action"] = "store_true"
        flag = argument.pop("flag", "--" + field.name.replace("_", "-"))
        group.add_argument(flag, **argument)
    return parser


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `python -m mm_rec.train`; the defaults are the baseline to tune from.

    `given` holds the names of those that were set by hand, as opposed to left at their defaults.
    """

    data: tuple[str, ...] = _data(
        (),
        "files or directories of .txt, .jsonl, and .gz of these (default: the sources of Python's "
        "standard library)",
        nargs="+",
        metavar="PATH",
    )
    text_field: str = _data("text", "field of a .jsonl object with its text")
    tokenizer: str = _data(
        "char", "bpe (byte pairs) needs autotune[bpe]", choices=("char", "byte", "bpe")
    )
    vocab_size: int | None = _data(None, "most ids of char and bpe (the preset's)", at_least(3))
    tokenize: str = _data(
        "ahead",
        "encode once into a cached file, for corpora of any size, or keep the text in memory and "
        "encode each sample when it is loaded",
        choices=("ahead", "on-the-fly"),
    )
    stream: bool = _data(False, "read as an iterable dataset")
    cache_dir: str | None = _data(None, "encoded data ($XDG_CACHE_HOME/mm_rec)")
    seq_len: int = _data(512, "tokens per sample", POSITIVE)
    stride: int | None = _data(None, "between samples (--seq-len)", POSITIVE)
    val_split: float = _data(0.1, "share of the text held out", SHARE)

    config: str | None = _throughput(None, "tuned settings, best_config.yaml", metavar="FILE")
    batch_size: int = _throughput(2, "samples per micro-step", POSITIVE)
    num_workers: int = _throughput(0, "loader processes (0)", COUNT)
    prefetch_factor: int | None = _throughput(None, "batches ahead per worker", POSITIVE)
    num_threads: int | None = _throughput(None, "intra-op threads (torch's)", POSITIVE)
    device: str = _throughput("cpu", "", choices=("cpu", "cuda"))
    bf16: bool = _throughput(
        False, "multiply matrices in bfloat16 (autocast); pays where the processor has it"
    )

    preset: str = _recipe("tiny", "size of the model", choices=PRESETS)
    width: int | None = _recipe(None, "(the preset's, as all sizes)", POSITIVE)
    num_layers: int | None = _recipe(None, "blocks", POSITIVE)
    num_heads: int | None = _recipe(None, "of the attention; divides --width", POSITIVE)
    chunk_len: int | None = _recipe(None, "tokens per write to the memory", POSITIVE)
    memory_levels: tuple[int, ...] | None = _recipe(
        None,
        "slots per level, finest first, each a multiple of the next",
        POSITIVE,
        nargs="+",
        metavar="SLOTS",
    )
    effective_batch_size: int | None = _recipe(
        None, "samples per optimizer step; gradients are accumulated over micro-steps", POSITIVE
    )
    lr: float = _recipe(3e-3, "peak learning rate", NUMBER)
    weight_decay: float = _recipe(0.1, "of the matrices", NUMBER)
    warmup_steps: int | None = _recipe(None, "(a tenth of the run, 100 at most)", COUNT)
    max_steps: int | None = _recipe(None, "stop after so many", POSITIVE)
    epochs: int = _recipe(1, "passes over the data", POSITIVE)
    dropout: float = _recipe(0.1, "", SHARE)
    aux_loss: bool = _recipe(False, "add the auxiliary loss")
    bptt_len: int | None = _recipe(
        None,
        "tokens that gradients flow back over; the state is carried over the whole sample, so that "
        "a long --seq-len costs no more memory (--seq-len)",
        POSITIVE,
    )
    gate_chunk_len: int = _recipe(
        1,
        "tokens whose gates see the same state; more than 1 deviates from the model and saves time",
        POSITIVE,
    )
    seed: int = _recipe(0, "(0)", seed)

    output_dir: str | None = _output(None, "metrics and checkpoint (runs/DATE-TIME-PRESET)")
    resume: str | None = _output(
        None,
        "go on from a checkpoint or from the directory of a run; without PATH from --output-dir. "
        "Options that are not given are the checkpoint's.",
        nargs="?",
        const=RESUME_FROM_OUTPUT_DIR,
        metavar="PATH",
    )
    dry_run: bool = _output(False, "say what would be trained, and how large it is")
    log_every: int = _output(10, "steps per metrics line", POSITIVE)
    val_every: int = _output(200, "0: at the end only", COUNT)
    val_samples: int = _output(128, "held-out samples used", POSITIVE)
    checkpoint_every: int = _output(100, "0: at the end only", COUNT)
    given: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {"data": [_absolute(path) for path in self.data], "given": sorted(self.given)}
        for name in ("config", "cache_dir"):
            if values[name] is not None:
                values[name] = _absolute(values[name])
        return values

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
        merged |= {"resume": self.resume, "output_dir": self.output_dir}
        return Options(**merged)


def parse(argv: Sequence[str] | None = None) -> Options:
    """Parse a command line of `python -m mm_rec.train`.

    Raises:
        ConfigError: An option is unknown, malformed or out of range.
    """
    parser = make_parser(
        Options,
        prog="python -m mm_rec.train",
        description="Train an MM-Rec language model. Steps are optimizer steps throughout.",
        epilog="Exit codes: 0 done, 2 bad input, 130 Ctrl-C, 143 SIGTERM (a checkpoint is kept).",
    )
    values = vars(parser.parse_args(argv))
    given = frozenset(values)
    for name in {"data", "memory_levels"} & given:
        values[name] = tuple(values[name])
    return Options(**values, given=given)


def _absolute(path: str) -> str:
    # A run may be resumed from another working directory.
    return str(Path(path).absolute())
