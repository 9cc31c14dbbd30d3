"""Text from a model, token by token.

The model's state is carried along, so that a token costs the same and the memory stays the same
however long the text has become.

Shapes: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mm_rec.data.tokenizers import PAD_ID, UNKNOWN_ID, Tokenizer
from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.model import MMRec, State

# Tokens of a prompt that the model reads at once.
PIECE_TOKENS = 512
REPLACEMENT = "\ufffd"
# Far more than a tokenizer needs to complete a character; bounds the memory for bytes that never
# become one.
MAX_HELD_TOKENS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn from the scores.

    Attributes:
        temperature: Divides the scores; 0 takes the highest score always.
        top_k: Draw from so many of the most probable tokens; None from all.
        top_p: Draw from the fewest of the most probable tokens that have this share of the
            probability together.

    Raises:
        ConfigError: A value is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise ConfigError(f"temperature must be a number of at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p must lie in (0, 1], got {self.top_p}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A text as far as the model has read it; any number of texts can go on from here.

    Attributes:
        logits_v: Scores of the next token.
        state: State after the last token.
    """

    logits_v: Tensor
    state: State


def read(model: MMRec, prompt: Iterable[Sequence[int]]) -> Reading:
    """Read a prompt, in pieces, so that it may be of any length.

    Args:
        model: In evaluation mode.
        prompt: Token ids, in parts of any lengths. An empty prompt is the beginning of a
            document, which is what the model has seen after the end of another one.
    """
    reading = None
    for part in prompt:
        for start in range(0, len(part), PIECE_TOKENS):
            reading = _advance(model, part[start : start + PIECE_TOKENS], reading)
    return _advance(model, [PAD_ID], None) if reading is None else reading


def generate(
    model: MMRec, start: Reading, *, sampling: Sampling, generator: torch.Generator | None = None
) -> Iterator[int]:
    """Yield token ids without end; `PAD_ID` among them is the end of a document.

    Args:
        model: In evaluation mode.
        start: Where the text goes on.
        sampling: How tokens are drawn.
        generator: Random numbers, on the CPU; None takes torch's own.

    Raises:
        CheckpointError: The model's scores are not numbers.
    """
    reading = start
    while True:
        token = choose(reading.logits_v, sampling, generator)
        yield token
        reading = _advance(model, [token], reading)


def choose(logits_v: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> int:
    """Draw a token; the unknown token is never drawn.

    Raises:
        CheckpointError: The scores are not numbers.
    """
    # In double precision the scores can be divided by any temperature.
    scores_v = logits_v.to("cpu", torch.float64, copy=True)
    scores_v[UNKNOWN_ID] = -math.inf
    best = scores_v.max()
    if not math.isfinite(best):
        raise CheckpointError(
            "the model's scores are not numbers: its training has diverged, take an earlier "
            "checkpoint or train with a lower --lr"
        )
    if sampling.temperature == 0.0:
        return int(scores_v.argmax())
    scores_v = (scores_v - best) / sampling.temperature
    if sampling.top_k is None and sampling.top_p == 1.0:
        return int(torch.multinomial(scores_v.softmax(0), 1, generator=generator))
    num_kept = min(sampling.top_k or len(scores_v), len(scores_v))
    kept, ids = scores_v.topk(num_kept)
    shares = kept.softmax(0)
    # A token stays unless those before it have the share already, so the first one always does.
    shares[shares.cumsum(0) - shares >= sampling.top_p] = 0.0
    return int(ids[torch.multinomial(shares, 1, generator=generator)])


class TextStream:
    """Tokens to text as they come: characters of several tokens are held back until complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Decode with `tokenizer`."""
        self._tokenizer = tokenizer
        self._held: list[int] = []
        self._num_written = 0

    def add(self, token: int) -> str:
        """Return the text that has become certain with this token."""
        self._held.append(token)
        text = self._tokenizer.decode(self._held)
        if not text.endswith(REPLACEMENT) or len(self._held) == MAX_HELD_TOKENS:
            return self.flush()
        # An incomplete character at the end is decoded to one replacement character.
        certain = text[self._num_written : -1]
        self._num_written = len(text) - 1
        return certain

    def flush(self) -> str:
        """Return the text of what is held back."""
        text = self._tokenizer.decode(self._held)[self._num_written :]
        self._held, self._num_written = [], 0
        return text


@torch.inference_mode()
def _advance(model: MMRec, tokens: Sequence[int], before: Reading | None) -> Reading:
    """Return the reading after some more tokens, at least one."""
    device = model.embedding.weight.device
    tokens_bt = torch.tensor([tokens], dtype=torch.int64, device=device)
    output = model(tokens_bt, None if before is None else before.state)
    return Reading(
        # Of the last token only.
        logits_v=functional.linear(output.hidden_btd[0, -1], output.head_vd),
        state=output.state,
    )
