"""Which documents are held out, and a name for all of this."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm_rec.data.corpus import Corpus
from mm_rec.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Which documents are held out.

    Attributes:
        key: Names the content, the split and the tokenizer.
        held_out: A flag per document.
        num_bytes: UTF-8 bytes of each document.
        share: Of the ids, what is held out at their end, where no document is small enough.
    """

    key: str
    held_out: NDArray[np.bool_]
    num_bytes: NDArray[np.int64]
    share: float

    def lengths(self, num_ids: Mapping[bool, int]) -> tuple[int, int]:
        """Ids to train on, and ids held out, which follow them."""
        at_the_end = int(self.share * num_ids[False])
        return num_ids[False] - at_the_end, num_ids[True] + at_the_end

    @property
    def validation_bytes(self) -> float:
        """UTF-8 bytes held out; about, where they are the end of the text."""
        return float((self.num_bytes * np.maximum(self.held_out, self.share)).sum())


def split_documents(corpus: Corpus, val_split: float, *, settings: bytes) -> Split:
    """Hold documents out in the order of the hashes of their texts, as long as they fit.

    The choice depends neither on names nor on the order of files.

    Args:
        corpus: Is read once.
        val_split: Share of the bytes to hold out.
        settings: What else the key depends on.

    Raises:
        DataError: The corpus is malformed or empty.
    """
    whole = hashlib.blake2b(settings, digest_size=12)
    hashes, sizes = [], []
    for piece in corpus.pieces():
        if piece.begins:
            document, size = hashlib.blake2b(digest_size=16), 0
        content = piece.text.encode("utf-8", errors="surrogatepass")
        document.update(content)
        size += len(content)
        if piece.ends:
            hashes.append(document.digest())
            sizes.append(size)
            whole.update(document.digest())
    if not sizes:
        raise DataError("the data hold no text: give other --data")
    num_bytes = np.array(sizes, dtype=np.int64)
    budget = left = int(val_split * num_bytes.sum())
    held_out = np.zeros(len(sizes), dtype=np.bool_)
    for index in sorted(range(len(sizes)), key=hashes.__getitem__):
        if sizes[index] <= left:
            held_out[index] = True
            left -= sizes[index]
    return Split(
        key=whole.hexdigest(),
        held_out=held_out,
        num_bytes=num_bytes,
        share=0.0 if left < budget else val_split,
    )
