"""Write text with a trained model: `python -m mm_rec.generate CHECKPOINT`."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence

import torch

from mm_rec.arguments import Parser, at_least, seed
from mm_rec.checkpoint import load_model
from mm_rec.data.tokenizers import PAD_ID, Tokenizer
from mm_rec.errors import MmRecError, OutputError
from mm_rec.prompt import Prompt
from mm_rec.sampling import Sampling, TextStream, generate, read


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `python -m mm_rec.generate`; `--help` says what each means."""

    checkpoint: str
    prompt: str = ""
    prompt_file: str | None = None
    max_tokens: int = 500
    num_samples: int = 1
    ignore_end: bool = False
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    num_threads: int = 1


@dataclasses.dataclass(slots=True, kw_only=True)
class Tally:
    """What a run has done so far."""

    num_prompt_tokens: int
    num_tokens: int = 0
    seconds: float = 0.0
    """Spent on tokens, without the prompt and without waiting for whoever reads the text."""

    def __str__(self) -> str:
        rate = self.num_tokens / self.seconds if self.seconds else 0.0
        return (
            f"{self.num_tokens:,} tokens in {self.seconds:.1f} s, {rate:.0f} tokens/s, after a "
            f"prompt of {self.num_prompt_tokens:,}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 for bad input or 130 after Ctrl-C."""
    try:
        run(parse(argv))
    except BrokenPipeError:
        # Whoever reads the text has seen enough.
        return 0
    except MmRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def parse(argv: Sequence[str] | None = None) -> Options:
    """Parse a command line.

    Raises:
        ConfigError: An option is unknown, malformed or out of range.
    """
    return Options(**vars(_parser().parse_args(argv)))


def run(options: Options) -> None:
    """Write what the options ask for to stdout, and the speed to stderr.

    Raises:
        MmRecError: The options, the checkpoint, the prompt or the output cannot be used.
    """
    sampling = Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    torch.set_num_threads(options.num_threads)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal's encoding may lack what the model writes.
        sys.stdout.reconfigure(errors="replace")
    model, tokenizer = load_model(options.checkpoint)
    prompt = Prompt(tokenizer, text=options.prompt, file=options.prompt_file)
    start = read(model, prompt)
    if prompt.unknown:
        print(f"warning: {prompt.describe_unknown()}", file=sys.stderr)
    tally = Tally(num_prompt_tokens=prompt.num_tokens)
    first_seed = torch.Generator().seed() % 2**32 if options.seed is None else options.seed
    try:
        for number in range(options.num_samples):
            if options.num_samples > 1:
                _write(f"--- {number + 1} of {options.num_samples} ---\n")
            generator = torch.Generator().manual_seed(first_seed + number)
            tokens = generate(model, start, sampling=sampling, generator=generator)
            _write_sample(tokens, tokenizer, options, tally)
    finally:
        if tally.num_tokens:
            print(f"{tally}; --seed {first_seed}", file=sys.stderr)


def _write_sample(
    tokens: Iterator[int], tokenizer: Tokenizer, options: Options, tally: Tally
) -> None:
    stream = TextStream(tokenizer)
    text = ""
    try:
        for _ in range(options.max_tokens):
            begin_s = time.perf_counter()
            token = next(tokens)
            tally.seconds += time.perf_counter() - begin_s
            tally.num_tokens += 1
            if token != PAD_ID:
                text = _write(stream.add(token)) or text
            elif options.ignore_end:
                text = _write(stream.flush() + "\n")
            else:
                break
        text = _write(stream.flush()) or text
    finally:
        # After Ctrl-C too, so that what follows starts on its own line.
        if not text.endswith("\n"):
            _write("\n")


def _write(text: str) -> str:
    """Write at once, and return the text."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _drop_stdout()
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot write to stdout: {error.strerror}") from error
    return text


def _drop_stdout() -> None:
    """Keep Python from trying once more, when it exits, to write what it could not write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> Parser:
    # SUPPRESS leaves out what was not given, so that the defaults live in Options alone.
    parser = Parser(
        prog="python -m mm_rec.generate",
        description="Write text with a trained MM-Rec model. Only what follows the prompt is "
        "written; it ends where the model ends the document.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog="Exit codes: 0 done, 2 bad input, 130 Ctrl-C.",
    )
    parser.add_argument("checkpoint", help="a checkpoint, or the directory of a run")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="what to go on from; - reads stdin")
    prompt.add_argument("--prompt-file", metavar="FILE", help="the same from a file, of any size")
    parser.add_argument("--max-tokens", type=at_least(1), help="length of a sample (500)")
    parser.add_argument("--num-samples", type=at_least(1), help="texts to write (1)")
    parser.add_argument(
        "--ignore-end", action="store_true", help="go on with a new document after an end"
    )
    parser.add_argument(
        "--temperature", type=float, help="0 always takes the most probable token (0.8)"
    )
    parser.add_argument("--top-k", type=int, help="draw from the K most probable tokens (all)")
    parser.add_argument(
        "--top-p",
        type=float,
        help="draw from the most probable tokens that make up this share (1)",
    )
    parser.add_argument(
        "--seed", type=seed, help="of the first sample, one more for each other (any)"
    )
    parser.add_argument("--num-threads", type=at_least(1), help="more than one seldom pays (1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
