from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from mm_rec import DataError
from mm_rec.data import CorpusFiles, plan, read_corpus, reading, split
from mm_rec.data.passes import Passes
from mm_rec.data.plan import plan_tasks
from mm_rec.data.progress import PassProgress
from mm_rec.data.reading import read_task
from mm_rec.data.split import SplitCorpus, split_documents
from mm_rec.data.survey import Survey, survey_corpus

SEGMENT_BYTES = 2**22


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    for module in (plan, reading):
        monkeypatch.setattr(module, "PIECE_BYTES", 8)
    return 8


def documents(corpus: CorpusFiles, segment_bytes: int = SEGMENT_BYTES) -> list[str]:
    found, text = [], ""
    for task in plan_tasks(corpus, segment_bytes):
        for piece in read_task(task, text_field=corpus.text_field, report=lambda _: None):
            text += piece.text
            if piece.ends:
                found.append(text)
                text = ""
    assert not text
    return found


def survey(corpus: CorpusFiles, segment_bytes: int = SEGMENT_BYTES) -> Survey:
    passes = Passes(num_processes=1, progress=PassProgress(num_bytes=0, visible=False))
    tasks = plan_tasks(corpus, segment_bytes)
    return survey_corpus(corpus, tasks, count_characters=False, passes=passes)


def test_standard_library_is_the_default_corpus() -> None:
    paths = [Path(file.path) for file in read_corpus().files]
    assert len(paths) > 100
    assert not any("site-packages" in path.parts for path in paths)
    assert {path.suffix for path in paths} == {".py"}
    assert [str(path) for path in paths] == sorted(map(str, paths))


def test_text_json_lines_and_gzip_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"plain \xff")
    (tmp_path / "site-packages").mkdir()
    lines = "".join(json.dumps({"body": text}) + "\n" for text in ("one\u2028", "", "two"))
    (tmp_path / "site-packages/b.jsonl").write_text(lines + "\n")
    (tmp_path / "site-packages/c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "site-packages/d.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (tmp_path / "site-packages/ignored.bin").write_bytes(b"\0")
    found = documents(read_corpus([tmp_path], text_field="body"))
    assert found == ["plain \ufffd", "one\u2028", "", "two", "one\u2028", "", "two", "zipped"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"a\.jsonl:2 .*--text-field"),
        ("a.jsonl", b"\n" * 30 + b"nonsense", r"a\.jsonl:31 is not a JSON object"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1 is not a JSON object"),
        (
            "a.jsonl.gz",
            gzip.compress(b"\nnonsense", mtime=0),
            r"a\.jsonl\.gz:2 is not a JSON object",
        ),
        ("a.txt.gz", b"not gzip", "not a readable .gz"),
        ("a.txt.gz", gzip.compress(bytes(range(99)), mtime=0)[:60], "not a readable .gz"),
        ("a.bin", b"", r"not a \.txt"),
        ("a.txt", b"", "no text"),
        ("a.jsonl", b"\n", "no text"),
    ],
)
@pytest.mark.parametrize("segment_bytes", [7, SEGMENT_BYTES])
def test_bad_data_is_named(
    tmp_path: Path, name: str, content: bytes, message: str, segment_bytes: int
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        survey(read_corpus([tmp_path / name]), segment_bytes)


def test_a_line_too_long_to_be_parsed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 20)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "' + "b" * 30 + '"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2 is longer than 20 bytes"):
        documents(read_corpus([tmp_path]))


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    corpus = read_corpus([tmp_path])
    corpus.check_unchanged()
    (tmp_path / "a.txt").write_text("another")
    with pytest.raises(DataError, match=r"a\.txt was written while"):
        corpus.check_unchanged()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: No such file"):
        documents(corpus)


@pytest.mark.parametrize("segment_bytes", [1, 8, 16, 24, 1_000])
def test_text_is_cut_without_breaking_characters(
    tmp_path: Path, small_pieces: int, segment_bytes: int
) -> None:
    generator = np.random.default_rng(0)
    # Valid text of one to four bytes a character, then bytes that are mostly none.
    contents = [
        "".join(generator.choice(list("aé→🌳"), length)).encode() for length in range(40)
    ] + [
        bytes(generator.choice([0x61, 0x80, 0xBF, 0xC3, 0xE2, 0xF0, 0xFF], length).tolist())
        for length in range(60)
    ]
    for number, content in enumerate(contents):
        (tmp_path / f"{number:03}.txt").write_bytes(content)
        (tmp_path / f"{number:03}.txt.gz").write_bytes(gzip.compress(content))
    whole = [content.decode(errors="replace") for content in contents for _ in range(2)]
    corpus = read_corpus([tmp_path])
    assert documents(corpus, segment_bytes) == whole
    assert max(len(text) for text in whole) > 4 * small_pieces
    # A document's hash is the same however its file is cut, compressed or not.
    rows = survey(corpus, segment_bytes).table
    assert (rows == survey(corpus).table).all()
    assert (rows[::2] == rows[1::2]).all()
    assert len(np.unique(rows)) == len(set(contents))


def test_lines_come_once_however_the_file_is_cut(tmp_path: Path, small_pieces: int) -> None:
    texts = ["", "a" * 50, "é→🌳" * 9, "lone \ud800 surrogate", "b", *map(str, range(20))]
    content = "\n".join(json.dumps({"text": text}) + "\n" * (len(text) % 3) for text in texts)
    (tmp_path / "a.jsonl").write_text(content)
    corpus = read_corpus([tmp_path])
    hashes = set()
    for segment_bytes in range(1, len(content) + 2, 3):
        assert documents(corpus, segment_bytes) == texts
        hashes.add(survey(corpus, segment_bytes).content_hash)
    assert len(hashes) == 1


def test_tasks_are_of_bounded_size_and_complete(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number:02}.jsonl").write_bytes(b"\n" * (37 * number % 101))
    corpus = read_corpus([tmp_path])
    tasks = plan_tasks(corpus, 40)
    sizes = [sum(span.stop - span.start for span in task) for task in tasks]
    assert max(sizes) < 80
    assert sum(sizes) == corpus.num_bytes
    assert len(tasks) < sum(map(len, tasks))


def write_documents(directory: Path, texts: list[str]) -> CorpusFiles:
    directory.mkdir()
    for number, text in enumerate(texts):
        (directory / f"{number:04}.txt").write_text(text)
    return read_corpus([directory])


def held_out_texts(corpus: CorpusFiles, fraction: float) -> list[str]:
    flags = split_documents(survey(corpus).table, fraction).held_out
    return [text for text, flag in zip(documents(corpus), flags, strict=True) if flag]


def test_split_is_by_document_and_independent_of_their_order(tmp_path: Path) -> None:
    texts = [f"document {n} " * (n % 7 + 1) for n in range(200)]
    corpus = write_documents(tmp_path / "one", texts)
    held_out = held_out_texts(corpus, 0.2)
    share = sum(map(len, held_out)) / sum(map(len, texts))
    assert 0.19 < share <= 0.2
    other = write_documents(tmp_path / "two", texts[::-1])
    assert held_out_texts(other, 0.2) == held_out[::-1]
    assert survey(other).content_hash != survey(corpus).content_hash
    assert held_out_texts(corpus, 0.0) == []


def test_split_is_the_same_where_the_table_is_sorted_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_documents(tmp_path / "text", [f"{n} " * (n % 9 + 1) for n in range(150)])
    table = survey(corpus).table
    whole = split_documents(table, 0.3).held_out.copy()
    monkeypatch.setattr(split, "BLOCK_ROWS", 11)
    assert (split_documents(table, 0.3).held_out == whole).all()


@pytest.mark.parametrize("segment_bytes", [8, 16, SEGMENT_BYTES])
@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.8, 0.99])
def test_the_longest_document_is_cut_where_none_is_small_enough(
    tmp_path: Path, small_pieces: int, segment_bytes: int, fraction: float
) -> None:
    text = "0é2→4🌳" * 8
    shorter = "a" * 47
    corpus = write_documents(tmp_path / "text", [text, shorter])
    surveyed = survey(corpus, segment_bytes)
    chosen = split_documents(surveyed.table, fraction)
    whole = SplitCorpus(text_field="text", survey=surveyed, split=chosen)
    parts: dict[str, list[str]] = {"train": [""], "validation": [""]}
    for number in range(len(surveyed.tasks)):
        for fragment in whole.fragments(number, report=lambda _: None):
            texts = parts[fragment.part.value]
            texts[-1] += fragment.text
            if fragment.ends:
                texts.append("")
    budget = int(fraction * 95)
    if budget < 47:
        expected = {"train": [text[:-budget], shorter, ""], "validation": [text[-budget:], ""]}
    elif budget < 48:
        expected = {"train": [text, ""], "validation": [shorter, ""]}
    else:
        expected = {}
    if expected:
        assert parts == expected
    else:
        assert not chosen.cut_at
        assert sorted(parts["train"] + parts["validation"]) == sorted([text, shorter, "", ""])
