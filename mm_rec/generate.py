"""Write text with a trained model: `python -m mm_rec.generate CHECKPOINT`."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mm_rec.checkpoint import load_model
from mm_rec.data.tokenizers import PAD_ID, UNKNOWN_ID, Tokenizer
from mm_rec.errors import ConfigError, DataError, MmRecError, OutputError
from mm_rec.options import POSITIVE, make_parser, option, seed
from mm_rec.sampling import Sampling, TextStream, generate, read

STDIN, STDIN_DESCRIPTOR = "-", 0
NUM_NAMED = 10


_option = functools.partial(option, "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `python -m mm_rec.generate`."""

    checkpoint: str = _option(
        dataclasses.MISSING, "a checkpoint, or the directory of a run", flag="checkpoint"
    )
    prompt: str = _option("", "what to go on from; - reads stdin", metavar="TEXT")
    prompt_file: str | None = _option(None, "the same from a file", metavar="FILE")
    max_tokens: int = _option(500, "length of a sample", POSITIVE)
    num_samples: int = _option(1, "texts to write", POSITIVE)
    ignore_end: bool = _option(False, "go on with a new document after an end")
    temperature: float = _option(0.8, "0 always takes the most probable token", float)
    top_k: int | None = _option(None, "draw from the K most probable tokens (all)", int)
    top_p: float = _option(1.0, "draw from the most probable tokens of this share", float)
    seed: int | None = _option(None, "of the first sample, one more for each other (any)", seed)
    num_threads: int = _option(1, "more than one seldom pays", POSITIVE)


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
    parser = make_parser(
        Options,
        prog="python -m mm_rec.generate",
        description="Write text with a trained MM-Rec model. Only what follows the prompt is "
        "written; it ends where the model ends the document.",
        epilog="Exit codes: 0 done, 2 bad input, 130 Ctrl-C.",
    )
    values = vars(parser.parse_args(argv))
    if {"prompt", "prompt_file"} <= set(values):
        raise ConfigError("--prompt is not allowed with --prompt-file: leave one out")
    return Options(**values)


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
    prompt = _read_prompt(options)
    tokens = tokenizer.encode(prompt)
    start = read(model, [tokens])
    if UNKNOWN_ID in tokens:
        print(f"warning: {_describe_unknown(prompt, tokenizer)}", file=sys.stderr)
    tally = Tally(num_prompt_tokens=len(tokens))
    first_seed = torch.Generator().seed() % 2**32 if options.seed is None else options.seed
    try:
        for number in range(options.num_samples):
            if options.num_samples > 1:
                _write(f"--- {number + 1} of {options.num_samples} ---\n")
            generator = torch.Generator().manual_seed(first_seed + number)
            sample = generate(model, start, sampling=sampling, generator=generator)
            _write_sample(sample, tokenizer, options, tally)
    finally:
        if tally.num_tokens:
            print(f"{tally}; --seed {first_seed}", file=sys.stderr)


def _read_prompt(options: Options) -> str:
    """The prompt; line ends are left as they are, as are those of the training text."""
    if options.prompt_file is None and options.prompt != STDIN:
        return options.prompt
    name = options.prompt_file or "from stdin"
    try:
        if options.prompt_file is not None:
            return Path(options.prompt_file).read_bytes().decode()
        with os.fdopen(STDIN_DESCRIPTOR, "rb", closefd=False) as file:
            return file.read().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"the prompt {name} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise DataError(f"cannot read the prompt {name}: {error.strerror}") from error


def _describe_unknown(prompt: str, tokenizer: Tokenizer) -> str:
    unknown = [c for c in dict.fromkeys(prompt) if UNKNOWN_ID in tokenizer.encode(c)]
    named = " ".join(map(repr, unknown[:NUM_NAMED]))
    others = " and others" if len(unknown) > NUM_NAMED else ""
    return f"characters of the prompt that the model has never seen: {named}{others}"


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
        # Python would try once more, when it exits, to write what it could not write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot write to stdout: {error.strerror}") from error
    return text


if __name__ == "__main__":
    sys.exit(main())
