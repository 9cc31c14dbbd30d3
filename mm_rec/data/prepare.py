"""From files to token sources: survey, split, tokenizer, and encoded ids in the cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mm_rec.cache_dir import default_cache_dir
from mm_rec.data.cache import TokenCache
from mm_rec.data.corpus import CorpusFiles
from mm_rec.data.encoding import encode_corpus
from mm_rec.data.passes import Passes, choose_num_processes
from mm_rec.data.plan import default_segment_bytes, plan_tasks
from mm_rec.data.progress import PassProgress
from mm_rec.data.shards import SHARD_TOKENS
from mm_rec.data.split import Part, SplitCorpus, split_documents
from mm_rec.data.survey import Survey, survey_corpus
from mm_rec.data.tokenizers import Tokenizer, UnitTokenizer
from mm_rec.data.vocabulary import TokenizerKind, check_vocabulary, make_tokenizer
from mm_rec.data.windows import RawText, TokenSource
from mm_rec.errors import ConfigError

# Raise it when the same corpus and settings would give other ids.
CACHE_VERSION = 2
# A file that was written so shortly before it was read may be written once more without a change
# of its time, which the clocks of some file systems count in seconds.
SETTLED_NS = 2_000_000_000

TokenizeMode = Literal["ahead", "on-the-fly"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """A corpus, ready to be cut into windows.

    Attributes:
        key: Names the content, the split and the tokenizer; equal keys mean equal ids.
        tokenizer: Made from the training documents.
        train: Ids to train on.
        validation: Ids held out; None without a validation split.
        validation_bytes: UTF-8 bytes of the held-out text, for bits per byte.
    """

    key: str
    tokenizer: Tokenizer
    train: TokenSource
    validation: TokenSource | None
    validation_bytes: int

    @property
    def validation_bytes_per_token(self) -> float:
        """UTF-8 bytes per held-out id, PAD included; 1 without a validation split."""
        if self.validation is None:
            return 1.0
        return self.validation_bytes / len(self.validation)


def prepare(
    corpus: CorpusFiles,
    *,
    tokenizer_kind: TokenizerKind = "char",
    vocab_size: int,
    val_split: float = 0.1,
    mode: TokenizeMode = "ahead",
    cache_dir: Path | None = None,
    num_processes: int | None = None,
    segment_bytes: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    show_progress: bool = False,
) -> PreparedData:
    """Tokenize a corpus, ahead into cached memory-mapped shards or on the fly.

    Ahead, the text is streamed: each process takes some 100 MB at most, whatever the size of the
    corpus or of a file; lists of files and tasks alone grow with it. Where the files have not been
    written since an earlier call, they are not even opened. No thread or process is left behind.

    Args:
        corpus: The files.
        tokenizer_kind: Characters, bytes, or byte-pair encoding (only ahead).
        vocab_size: Most ids that a tokenizer of characters or byte pairs may use.
        val_split: Share of the characters to hold out.
        mode: Both give the same ids; the second keeps the text in memory and leaves the work to
            whoever reads a window.
        cache_dir: Where ids that were encoded ahead are kept.
        num_processes: Processes that read; None takes the usable cores for a large corpus. The
            ids do not depend on it.
        segment_bytes: Text that a process reads at a time; None chooses by the corpus' size.
        shard_tokens: Most ids of one file in the cache. The ids do not depend on it.
        show_progress: Show on stderr how far it is, if it takes more than a moment.

    Raises:
        ConfigError: The tokenizer is not possible.
        DataError: The corpus is malformed or empty.
        OutputError: The cache, or a temporary file, cannot be written.
    """
    check_mode(tokenizer_kind, mode)
    job = _Job(
        corpus=corpus,
        tokenizer_kind=tokenizer_kind,
        vocab_size=vocab_size,
        val_split=val_split,
        num_processes=choose_num_processes(num_processes, corpus.num_bytes),
        segment_bytes=segment_bytes or default_segment_bytes(corpus),
    )
    if mode == "ahead":
        cache = TokenCache(directory=cache_dir or default_cache_dir())
        return job.ahead(cache, shard_tokens=shard_tokens, show_progress=show_progress)
    return job.on_the_fly(show_progress=show_progress)


def check_mode(tokenizer_kind: TokenizerKind, mode: TokenizeMode) -> None:
    """Refuse byte pairs on the fly.

    Raises:
        ConfigError: That was asked for.
    """
    if mode == "on-the-fly" and tokenizer_kind == "bpe":
        raise ConfigError(
            "--tokenizer bpe cannot encode a window on its own: use it with --tokenize ahead"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The preparation of one corpus."""

    corpus: CorpusFiles
    tokenizer_kind: TokenizerKind
    vocab_size: int
    val_split: float
    num_processes: int
    segment_bytes: int

    def ahead(self, cache: TokenCache, *, shard_tokens: int, show_progress: bool) -> PreparedData:
        signature = self.corpus.signature()
        content_hash = cache.content_of(signature)
        if content_hash is None or not cache.holds(self._key(content_hash)):
            check_vocabulary(self.tokenizer_kind, self.vocab_size)
            settled = self._is_settled()
            with cache.writing() as working, self._progress(show_progress) as progress:
                passes = Passes(num_processes=self.num_processes, progress=progress)
                survey = self._survey(passes)
                content_hash = survey.content_hash
                if not cache.holds(self._key(content_hash)):
                    self._write(cache, working, survey, passes, shard_tokens)
                if settled:
                    cache.remember(working, signature, content_hash)
        key = self._key(content_hash)
        cached = cache.read(key)
        return PreparedData(
            key=key,
            tokenizer=cached.tokenizer,
            train=cached.train,
            validation=cached.validation,
            validation_bytes=cached.validation_bytes,
        )

    def on_the_fly(self, *, show_progress: bool) -> PreparedData:
        check_vocabulary(self.tokenizer_kind, self.vocab_size)
        with self._progress(show_progress) as progress:
            passes = Passes(num_processes=self.num_processes, progress=progress)
            survey = self._survey(passes)
            corpus = self._split(survey)
            tokenizer = self._make_tokenizer(corpus, passes)
        assert isinstance(tokenizer, UnitTokenizer)
        documents = {part: list(_documents(corpus, part)) for part in Part}
        self.corpus.check_unchanged()
        held_out = documents[Part.VALIDATION]
        return PreparedData(
            key=self._key(survey.content_hash),
            tokenizer=tokenizer,
            train=RawText(documents[Part.TRAIN], tokenizer),
            validation=RawText(held_out, tokenizer) if held_out else None,
            validation_bytes=sum(
                len(text.encode("utf-8", errors="surrogatepass")) for text in held_out
            ),
        )

    def _write(
        self, cache: TokenCache, working: Path, survey: Survey, passes: Passes, shard_tokens: int
    ) -> None:
        corpus = self._split(survey)
        tokenizer = self._make_tokenizer(corpus, passes)
        written = working / "corpus"
        written.mkdir()
        encoded = encode_corpus(
            corpus, tokenizer, written, shard_tokens=shard_tokens, passes=passes
        )
        self.corpus.check_unchanged()
        cache.publish(written, self._key(survey.content_hash), tokenizer, encoded)

    def _survey(self, passes: Passes) -> Survey:
        return survey_corpus(
            self.corpus,
            plan_tasks(self.corpus, self.segment_bytes),
            count_characters=self.tokenizer_kind == "char",
            passes=passes,
        )

    def _split(self, survey: Survey) -> SplitCorpus:
        return SplitCorpus(
            text_field=self.corpus.text_field,
            survey=survey,
            split=split_documents(survey.table, self.val_split),
        )

    def _make_tokenizer(self, corpus: SplitCorpus, passes: Passes) -> Tokenizer:
        return make_tokenizer(
            self.tokenizer_kind, corpus, vocab_size=self.vocab_size, passes=passes
        )

    def _progress(self, visible: bool) -> PassProgress:
        return PassProgress(num_bytes=self.corpus.num_bytes, visible=visible)

    def _is_settled(self) -> bool:
        newest_ns = max(file.mtime_ns for file in self.corpus.files)
        return time.time_ns() - newest_ns >= SETTLED_NS

    def _key(self, content_hash: str) -> str:
        settings = (
            f"{CACHE_VERSION} {self.tokenizer_kind} {self.vocab_size} {self.val_split!r} "
            f"{content_hash}"
        )
        return hashlib.blake2b(settings.encode(), digest_size=12).hexdigest()


def _documents(corpus: SplitCorpus, part: Part) -> Iterator[str]:
    text: list[str] = []
    for number in corpus.tasks_of(part):
        for fragment in corpus.fragments(number, report=lambda _: None, only=part):
            text.append(fragment.text)
            if fragment.ends:
                yield "".join(text)
                text = []
