"""Text corpora, tokenizers, windows over them, and the order in which they are visited."""

from mm_rec.data.bpe import BpeTokenizer
from mm_rec.data.corpus import CorpusFiles, read_corpus
from mm_rec.data.prepare import PreparedData, prepare
from mm_rec.data.sampler import WindowOrder
from mm_rec.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from mm_rec.data.vocabulary import tokenizer_from_dict
from mm_rec.data.windows import StreamedWindows, WindowDataset

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "CorpusFiles",
    "PreparedData",
    "StreamedWindows",
    "Tokenizer",
    "WindowDataset",
    "WindowOrder",
    "prepare",
    "read_corpus",
    "tokenizer_from_dict",
]
