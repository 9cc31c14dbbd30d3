"""Text corpora, tokenizers, windows over them, and the order in which they are visited."""

from mm_rec.data.corpus import Corpus, read_corpus
from mm_rec.data.prepare import PreparedData, prepare
from mm_rec.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from mm_rec.data.windows import StreamedWindows, WindowDataset, WindowOrder

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "PreparedData",
    "StreamedWindows",
    "Tokenizer",
    "WindowDataset",
    "WindowOrder",
    "prepare",
    "read_corpus",
]
