from __future__ import annotations

import dataclasses
import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_rec import CheckpointError, ConfigError, MMRec, ModelConfig, State, load_model
from mm_rec.checkpoint import Checkpoint, Position
from mm_rec.data import ByteTokenizer, CharTokenizer, Tokenizer
from mm_rec.data.tokenizers import NUM_SPECIAL, PAD_ID, UNKNOWN_ID
from mm_rec.generate import main
from mm_rec.sampling import PIECE_TOKENS, Sampling, TextStream, choose, generate, read

GREEDY = Sampling(temperature=0.0)
ARROW_TREE = "a→🌳→é"


def make_model(config: ModelConfig) -> MMRec:
    torch.manual_seed(0)
    model = MMRec(dataclasses.replace(config, dropout=0.0)).eval()
    # Larger than at the start of training, so that the text depends on what came before.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
    return model


def make_ids(count: int) -> list[int]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(2, 300, (count,), generator=generator).tolist()


def take(model: MMRec, prompt: Sequence[int], count: int, sampling: Sampling) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    start = read(model, [prompt])
    tokens = generate(model, start, sampling=sampling, generator=generator)
    return list(itertools.islice(tokens, count))


@pytest.mark.parametrize("prompt_length", [0, 5, 8, PIECE_TOKENS + 3])
def test_greedy_text_is_the_argmax_over_the_whole_text_so_far(
    small: ModelConfig, prompt_length: int
) -> None:
    model, prompt = make_model(small).double(), make_ids(prompt_length)
    # Across more chunks than the memory has slots.
    tokens = take(model, prompt, 50, GREEDY)
    assert len(set(tokens)) > 5
    text = prompt or [PAD_ID]
    for token in tokens:
        logits = model(torch.tensor([text])).logits_btv[0, -1].detach()
        logits[UNKNOWN_ID] = -math.inf
        assert token == int(logits.argmax())
        text = [*text, token]


def test_a_prompt_in_parts_is_read_like_one_in_a_piece(small: ModelConfig) -> None:
    model, prompt = make_model(small).double(), make_ids(100)
    whole = read(model, [prompt]).logits_v
    torch.testing.assert_close(read(model, [[i] for i in prompt]).logits_v, whole)
    torch.testing.assert_close(read(model, [[], prompt[:41], prompt[41:], []]).logits_v, whole)
    assert not torch.allclose(read(model, [prompt[1:]]).logits_v, whole)


def state_bytes(state: State) -> int:
    """Count storages whole: what a view keeps alive counts."""
    found: dict[int, int] = {}

    def run_short(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, tuple):
            for item in value:
                run_short(item)
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                run_short(getattr(value, field.name))

    run_short(state)
    return sum(found.values())


def test_the_state_does_not_grow_with_the_text(small: ModelConfig) -> None:
    model = make_model(small)
    # Equally far into a chunk; the memory is full after 4 chunks of 8.
    lengths = [8 * chunks + 3 for chunks in (6, 60)]
    short, long = (read(model, [[i] for i in make_ids(n)]).state for n in lengths)
    assert state_bytes(short) == state_bytes(long)
    in_one_piece = read(model, [make_ids(lengths[1])]).state.layers[0].memory
    assert in_one_piece.slots_bmd.untyped_storage().nbytes() == 16 * 32 * 4
    assert in_one_piece.pending_brd.untyped_storage().nbytes() == 3 * 32 * 4


def draws(shares: Sequence[float], sampling: Sampling, count: int = 400) -> list[int]:
    # The first two ids are UNK and PAD.
    logits = torch.tensor([50.0, -50.0, *map(math.log, shares)])
    generator = torch.Generator().manual_seed(0)
    return [choose(logits, sampling, generator) - NUM_SPECIAL for _ in range(count)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), {0, 1, 2, 3}),
        (Sampling(top_k=2), {1, 2}),
        (Sampling(top_k=1), {2}),
        (Sampling(top_k=1_000), {0, 1, 2, 3}),
        (Sampling(top_p=0.35), {2}),
        (Sampling(top_p=0.45), {1, 2}),
        (Sampling(top_p=0.75), {1, 2, 3}),
        (Sampling(top_p=1e-9), {2}),
        (Sampling(top_k=3, top_p=0.4), {2}),
        (Sampling(temperature=1e-300), {2}),
        (GREEDY, {2}),
    ],
)
def test_only_the_tokens_asked_for_are_drawn_and_all_of_them(
    sampling: Sampling, expected: set[int]
) -> None:
    assert set(draws([0.1, 0.3, 0.4, 0.2], sampling)) == expected


def test_top_p_counts_what_top_k_has_left() -> None:
    # Of the two tokens left, the first one has 4 / 7.
    assert set(draws([0.1, 0.3, 0.4, 0.2], Sampling(top_k=2, top_p=0.56))) == {2}
    assert set(draws([0.1, 0.3, 0.4, 0.2], Sampling(top_k=2, top_p=0.58))) == {1, 2}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_as_frequent_as_the_temperature_says(temperature: float) -> None:
    shares = torch.tensor([0.1, 0.3, 0.4, 0.2])
    expected = shares.pow(1.0 / temperature)
    drawn = torch.tensor(draws(shares.tolist(), Sampling(temperature=temperature), 3_000))
    frequencies = drawn.bincount(minlength=4) / 3_000
    torch.testing.assert_close(frequencies, expected / expected.sum(), rtol=0.0, atol=0.04)


def test_scores_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(CheckpointError, match="diverged"):
        choose(torch.tensor([0.0, 1.0, math.nan]), GREEDY)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
    ],
)
def test_impossible_sampling_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Sampling(**changes)


def stream(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    decoder = TextStream(tokenizer)
    return [*map(decoder.add, ids), decoder.flush()]


def test_characters_of_several_tokens_come_out_whole() -> None:
    ids = ByteTokenizer().encode(ARROW_TREE)
    parts = stream(ByteTokenizer(), ids)
    assert [part for part in parts if part] == list(ARROW_TREE)
    assert parts[0] == "a"


class PairTokenizer(ByteTokenizer):
    """Bytes, and ids above them that stand for two ids each."""

    def __init__(self, *pairs: tuple[int, int]) -> None:
        self.pairs = pairs

    def decode(self, ids: Sequence[int]) -> str:
        whole = [(i,) if i < 258 else self.pairs[i - 258] for i in ids]
        return super().decode(list(itertools.chain.from_iterable(whole)))


def test_tokens_that_end_within_a_character_hold_only_that_character_back() -> None:
    # The letter with the arrow's first byte, and the arrow's last byte with the tree's first.
    arrow, tree = ([byte + NUM_SPECIAL for byte in char.encode()] for char in "→🌳")
    letter = ord("a") + NUM_SPECIAL
    tokenizer = PairTokenizer((letter, arrow[0]), (arrow[2], tree[0]))
    ids = [258, arrow[1], 259, *tree[1:]]
    assert stream(tokenizer, ids) == ["a", "", "→", "", "", "🌳", ""]


def test_any_bytes_come_out_as_if_decoded_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(NUM_SPECIAL, 258, (4_000,), generator=generator).tolist()
    endless = [0xFF + NUM_SPECIAL] * 2_500
    for content in (ids, endless, ids[:99] + endless[:3], [0xE2 + NUM_SPECIAL]):
        assert "".join(stream(ByteTokenizer(), content)) == ByteTokenizer().decode(content)


def save_checkpoint(
    path: Path, config: ModelConfig, tokenizer: Tokenizer, /, **changes: Any
) -> MMRec:
    model = make_model(dataclasses.replace(config, vocab_size=tokenizer.vocab_size))
    checkpoint = Checkpoint(
        position=Position(),
        options={},
        data_key="",
        effective_batch_size=1,
        model_config=model.config,
        model=model.state_dict(),
        optimizer={},
        rng_state=torch.get_rng_state(),
        tokenizer=tokenizer.to_dict(),
    )
    dataclasses.replace(checkpoint, **changes).save(path)
    return model


@pytest.fixture
def run_dir(small: ModelConfig, tmp_path: Path) -> Path:
    """A run's directory with a checkpoint of a model of bytes."""
    save_checkpoint(tmp_path / "checkpoint.pt", small, ByteTokenizer())
    return tmp_path


def test_a_loaded_model_is_the_saved_one(small: ModelConfig, tmp_path: Path) -> None:
    tokenizer = CharTokenizer("etaoin ")
    saved = save_checkpoint(tmp_path / "checkpoint.pt", small, tokenizer)
    before = torch.get_rng_state()
    model, loaded = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config == saved.config
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert loaded.to_dict() == tokenizer.to_dict()


def test_a_checkpoint_that_contradicts_itself_is_an_error(
    small: ModelConfig, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(file, small, ByteTokenizer(), model_config=small)
    with pytest.raises(CheckpointError, match="not a usable checkpoint"):
        load_model(file)
    save_checkpoint(file, small, ByteTokenizer(), tokenizer={"kind": "other"})
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_model(file)
    content = torch.load(file, weights_only=True)
    content["model_config"]["num_heads"] = 3
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="num_heads"):
        load_model(file)
    content["format"] = 1
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="checkpoint format 1"):
        load_model(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(file)


class Touch:
    """Makes a file when it is unpickled by whoever trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(small: ModelConfig, tmp_path: Path) -> None:
    file, touched = tmp_path / "checkpoint.pt", tmp_path / "touched"
    save_checkpoint(file, small, ByteTokenizer())
    torch.save({**torch.load(file, weights_only=True), "position": Touch(touched)}, file)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_model(file)
    assert not touched.exists()
    # It would have, had it been trusted.
    torch.load(file, weights_only=False)
    assert touched.exists()


def test_the_seed_decides_the_text(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(*flags: str) -> str:
        assert main([str(run_dir), "--prompt", "a", "--max-tokens", "30", *flags]) == 0
        return capsys.readouterr().out

    first, second = write("--seed", "3"), write("--seed", "4")
    assert first == write("--seed", "3")
    assert first != second
    both = write("--seed", "3", "--num-samples", "2")
    assert both == f"--- 1 of 2 ---\n{first}--- 2 of 2 ---\n{second}"
    assert write("--temperature", "0", "--seed", "3") == write("--temperature", "0")
    assert write("--seed", "3") != write("--seed", "3", "--top-k", "2", "--top-p", "0.9")


def test_without_a_seed_the_last_line_names_the_one_taken(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_dir), "--max-tokens", "30", "--ignore-end"]) == 0
    output = capsys.readouterr()
    report, _, seed = output.err.strip().rpartition("--seed ")
    assert report.startswith("30 tokens in ")
    assert "tokens/s, after a prompt of 0;" in report
    assert main([str(run_dir), "--max-tokens", "30", "--ignore-end", "--seed", seed]) == 0
    assert capsys.readouterr().out == output.out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], "one\n"), (["--ignore-end"], "one\ntw\n"), (["--max-tokens", "2"], "on\n")],
)
def test_the_end_of_the_document_ends_the_text(
    run_dir: Path,
    flags: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encode = ByteTokenizer().encode
    scripted = [*encode("one"), PAD_ID, *encode("two"), PAD_ID]

    def scripted_tokens(*_: Any, **__: Any) -> Iterator[int]:
        return iter(scripted)

    monkeypatch.setattr("mm_rec.generate.generate", scripted_tokens)
    assert main([str(run_dir), "--max-tokens", "6", *flags]) == 0
    assert capsys.readouterr().out == expected


def test_unknown_characters_of_the_prompt_are_named(
    small: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", small, CharTokenizer("etaoin "))
    flags = ["--max-tokens", "5", "--seed", "0"]
    assert main([str(tmp_path), "--prompt", "a tin → é →", *flags]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("warning: ")
    assert lines[0].endswith("never seen: '→' 'é'")
    assert len(lines) == 2
    (tmp_path / "prompt").write_text("".join(map(chr, range(0x400, 0x420))), encoding="utf-8")
    assert main([str(tmp_path), "--prompt-file", str(tmp_path / "prompt"), *flags]) == 0
    assert capsys.readouterr().err.splitlines()[0].endswith("'Љ' and others")


def test_a_prompt_file_is_read_as_it_is(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Longer than one part; its line ends matter.
    prompt, file = "naïve\r\n" * 10_000, run_dir / "prompt.txt"
    file.write_bytes(prompt[-70_000:].encode())
    flags = ["--max-tokens", "20", "--temperature", "0"]
    assert main([str(run_dir), "--prompt-file", str(file), *flags]) == 0
    from_file = capsys.readouterr()
    assert "after a prompt of 80,000;" in from_file.err
    assert main([str(run_dir), "--prompt", prompt[-70_000:], *flags]) == 0
    assert capsys.readouterr().out == from_file.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["absent"], "absent: there is no checkpoint"),
        (["file"], "not a readable checkpoint"),
        (["empty"], "empty: there is no checkpoint"),
        ([], "the following arguments are required: checkpoint"),
        ([".", "--no-such-flag"], "--no-such-flag"),
        ([".", "--temperature", "-1"], "temperature must be a number of at least 0"),
        ([".", "--top-k", "0"], "top_k must be at least 1"),
        ([".", "--top-p", "1.5"], "top_p must lie in (0, 1]"),
        ([".", "--max-tokens", "0"], "--max-tokens: must be at least 1"),
        ([".", "--num-samples", "many"], "--num-samples"),
        ([".", "--seed", str(2**70)], "--seed: must lie in"),
        ([".", "--prompt", "a", "--prompt-file", "file"], "not allowed with"),
        ([".", "--prompt-file", "absent"], "cannot read the prompt absent"),
        ([".", "--prompt-file", "empty"], "cannot read the prompt empty"),
        ([".", "--prompt-file", "file"], "the prompt file is not UTF-8 text"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run_dir: Path,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run_dir)
    Path("file").write_bytes(b"not a checkpoint \xff")
    Path("empty").mkdir()
    assert main(flags) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert message in output.err


def start_command(run_dir: Path, *flags: str, **streams: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mm_rec.generate", str(run_dir), "--ignore-end"]
    return subprocess.Popen(
        [*command, "--max-tokens", "10000000", *flags],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **streams,
    )


def test_text_is_written_as_it_comes_until_nobody_reads_any_more(run_dir: Path) -> None:
    process = start_command(run_dir, "--prompt", "-", stdin=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("naïve".encode())
        process.stdin.close()
        # Far less than a buffer holds, of a text that would take hours.
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(30.0) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert "after a prompt of 6;" in errors
    assert errors.count("\n") == 1


def test_ctrl_c_ends_the_text_with_130(run_dir: Path) -> None:
    process = start_command(run_dir)
    try:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30.0)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err
    assert b"tokens/s" in err
    assert err.endswith(b"interrupted\n")
