from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from mm_rec import DataError
from mm_rec.data import Corpus, corpus, prepare, read_corpus


def documents(files: Corpus) -> list[str]:
    found, text = [], ""
    for piece in files.pieces():
        assert piece.begins == (not text)
        assert 0 < len(piece.text) <= corpus.PIECE_CHARACTERS
        text += piece.text
        if piece.ends:
            found.append(text)
            text = ""
    assert not text
    return found


def test_standard_library_is_the_default_corpus() -> None:
    paths = [Path(file.path) for file in read_corpus().files]
    assert len(paths) > 100
    assert not any("site-packages" in path.parts for path in paths)
    assert {path.suffix for path in paths} == {".py"}
    assert [str(path) for path in paths] == sorted(map(str, paths))


def test_text_json_lines_and_gzip_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"plain \xff\r\n")
    (tmp_path / "site-packages").mkdir()
    texts = ("one\u2028", "", "two", "lone \ud800, paired \ud83c\udf33")
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    (tmp_path / "site-packages/b.jsonl").write_text(lines + "\n")
    (tmp_path / "site-packages/c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "site-packages/d.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (tmp_path / "site-packages/empty.txt").write_bytes(b"")
    (tmp_path / "site-packages/ignored.bin").write_bytes(b"\0")
    of_lines = ["one\u2028", "two", "lone \ufffd, paired \U0001f333"]
    expected = ["plain \ufffd\r\n", *of_lines, *of_lines, "zipped"]
    assert documents(read_corpus([tmp_path], text_field="body")) == expected


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
def test_bad_data_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(read_corpus([tmp_path / name]), vocab_size=300, cache_dir=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*/"))


def test_a_line_too_long_to_be_parsed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "MAX_LINE_CHARACTERS", 20)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "' + "b" * 30 + '"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2 is longer than 20 characters"):
        documents(read_corpus([tmp_path]))


def test_a_file_that_changes_or_vanishes_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    files = read_corpus([tmp_path])
    assert documents(files) == ["text"]
    (tmp_path / "a.txt").write_text("another")
    with pytest.raises(DataError, match=r"a\.txt was written while"):
        documents(files)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: No such file"):
        documents(files)


def test_text_is_cut_without_breaking_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 8)
    generator = np.random.default_rng(0)
    # Valid text of one to four bytes a character, then bytes that are mostly none.
    contents = [
        "".join(generator.choice(list("aé→🌳"), length)).encode() for length in range(1, 40)
    ] + [
        bytes(generator.choice([0x61, 0x80, 0xBF, 0xC3, 0xE2, 0xF0, 0xFF], length).tolist())
        for length in range(1, 60)
    ]
    for number, content in enumerate(contents):
        (tmp_path / f"{number:03}.txt").write_bytes(content)
        (tmp_path / f"{number:03}.txt.gz").write_bytes(gzip.compress(content))
    whole = [content.decode(errors="replace") for content in contents for _ in range(2)]
    assert documents(read_corpus([tmp_path])) == whole
    lines = "".join(json.dumps({"text": text}) + "\n" for text in whole)
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines/a.jsonl").write_text(lines)
    assert documents(read_corpus([tmp_path / "lines"])) == whole
