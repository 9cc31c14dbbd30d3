from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autotune
from mm_rec import load_model
from mm_rec.checkpoint import Position
from mm_rec.data import prepare, read_corpus
from mm_rec.data.tokenizers import tokenizer_from_dict
from mm_rec.session import Session
from mm_rec.train import main
from mm_rec.training import split_windows

Train = Callable[..., int]


@pytest.fixture
def train(
    small_preset: str, text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Train:
    """Runs the command on the small model and text, in an empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str) -> int:
        common = ["--preset", small_preset, "--data", str(text_dir), "--seq-len", "24"]
        return main([*common, "--log-every", "1", *arguments])

    return run


def read_metrics(directory: str, name: str = "loss") -> list[float]:
    lines = Path(directory, "metrics.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


def read_checkpoint(directory: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(Path(directory, "checkpoint.pt"), weights_only=True)
    return content


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    original = Session.after_step

    def after_step(self: Session, position: Position) -> bool:
        if position.step == step:
            signal.raise_signal(number)
        return original(self, position)

    monkeypatch.setattr(Session, "after_step", after_step)


def test_labels_are_the_inputs_shifted_by_one() -> None:
    inputs, labels = split_windows(torch.arange(12).reshape(2, 6))
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]
    assert labels.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]


def test_same_effective_batch_gives_the_same_loss_curve(train: Train) -> None:
    recipe = ["--effective-batch-size", "16", "--dropout", "0", "--max-steps", "12"]
    recipe += ["--epochs", "4", "--lr", "0.01"]
    assert train(*recipe, "--batch-size", "2", "--output-dir", "small") == 0
    assert train(*recipe, "--batch-size", "16", "--num-workers", "1", "--output-dir", "large") == 0
    small, large = read_metrics("small"), read_metrics("large")
    assert len(small) == len(large) == 12
    assert small == pytest.approx(large, rel=1e-4)
    assert small[-1] < small[0] - 0.5


@pytest.mark.parametrize(
    "flags", [[], ["--num-workers", "1"], ["--stream"]], ids=["plain", "worker", "stream"]
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    train: Train, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 12 steps an epoch: the run crosses one before and one after the interruption.
    flags = [*flags, "--batch-size", "8", "--effective-batch-size", "32", "--val-every", "5"]
    flags += ["--max-steps", "26", "--epochs", "9"]
    assert train(*flags, "--output-dir", "whole") == 0
    with monkeypatch.context() as patch:
        interrupt_after(13, patch, signal.SIGINT)
        assert train(*flags, "--output-dir", "parts") == 130
    assert read_checkpoint("parts")["position"]["step"] == 13
    assert train(*flags, "--output-dir", "parts", "--resume") == 0
    whole, parts = read_checkpoint("whole"), read_checkpoint("parts")
    assert whole["position"] == parts["position"]
    assert whole["position"]["epoch"] == 2
    assert torch.equal(whole["rng_state"], parts["rng_state"])
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    for index, state in whole["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, parts["optimizer"]["state"][index][name]), name
    assert read_metrics("whole") == read_metrics("parts")
    assert read_metrics("whole", "val_loss") == read_metrics("parts", "val_loss")


def test_long_samples_in_pieces_with_low_precision_and_frozen_gates(train: Train) -> None:
    flags = ["--seq-len", "300", "--bptt-len", "70", "--bf16", "--gate-chunk-len", "4"]
    flags += ["--epochs", "9", "--max-steps", "8", "--lr", "0.01"]
    assert train(*flags, "--output-dir", "run") == 0
    losses = read_metrics("run")
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_bad_input(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--device", "cuda", "--max-steps", "1") == 2
    assert capsys.readouterr().err.startswith("error: --device cuda: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_and_resuming_on_a_gpu(train: Train) -> None:
    flags = ["--device", "cuda", "--dropout", "0"]
    assert train(*flags, "--max-steps", "4", "--output-dir", "whole") == 0
    assert train(*flags, "--max-steps", "2", "--output-dir", "parts") == 0
    assert main(["--resume", "parts", "--max-steps", "4"]) == 0
    assert read_metrics("parts") == pytest.approx(read_metrics("whole"), rel=0.05)


def test_resume_takes_what_is_not_given_from_the_checkpoint(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--batch-size", "4", "--dropout", "0.3", "--max-steps", "6"]
    assert train(*flags, "--output-dir", "whole") == 0
    with monkeypatch.context() as patch:
        interrupt_after(3, patch, signal.SIGTERM)
        assert train(*flags, "--output-dir", "parts") == 143
    assert main(["--resume", "parts"]) == 0
    assert read_metrics("parts") == read_metrics("whole")
    capsys.readouterr()
    assert main(["--resume", "parts/checkpoint.pt"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["--resume", "parts", "--max-steps", "8"]) == 0
    assert len(read_metrics("parts")) == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "5"], "--seed 5 differs from the checkpoint's 0"),
        (["--num-layers", "3"], "--num-layers 3 differs from the checkpoint's 2"),
        (
            ["--memory-levels", "8", "4"],
            "--memory-levels (8, 4) differs from the checkpoint's (16,",
        ),
        (["--effective-batch-size", "8"], "effective batch size 8 differs"),
        (["--data", "other.txt"], "other data"),
        (["--gate-chunk-len", "4"], "--gate-chunk-len 4 differs from the checkpoint's 1"),
        (["--output-dir", "other"], "holds a run already"),
    ],
)
def test_resume_refuses_what_would_change_the_recipe(
    train: Train, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--max-steps", "2", "--output-dir", "run") == 0
    assert train("--max-steps", "1", "--output-dir", "other") == 0
    Path("other.txt").write_text("other text " * 500)
    capsys.readouterr()
    assert main(["--resume", "run", *flags]) == 2
    assert message in capsys.readouterr().err


def test_sizes_given_in_place_of_the_presets_are_kept(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--width", "24", "--num-layers", "1", "--num-heads", "3", "--chunk-len", "4"]
    sizes += ["--memory-levels", "8", "4"]
    assert train(*sizes, "--max-steps", "1", "--output-dir", "run") == 0
    opening = capsys.readouterr().out.splitlines()[0]
    named = "test width=24 num_layers=1 num_heads=3 chunk_len=4 memory_levels=(8, 4),"
    assert opening.startswith(f"model: {named}")
    model, tokenizer = load_model("run")
    config = model.config
    assert (config.width, config.num_layers, config.num_heads, config.chunk_len) == (24, 1, 3, 4)
    assert config.memory_levels == (8, 4)
    assert f"{model.num_parameters():,} parameters" in opening
    assert tokenizer.decode(tokenizer.encode("naïve")) == "naïve"
    # A size may be given again where it is the same, also one that was the preset's.
    assert main(["--resume", "run", "--width", "24", "--max-steps", "2"]) == 0
    assert train("--max-steps", "1", "--output-dir", "plain") == 0
    assert main(["--resume", "plain", "--width", "32", "--max-steps", "2"]) == 0
    assert read_checkpoint("plain")["position"]["step"] == 2


def test_a_dry_run_tells_the_size_and_writes_nothing(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--dry-run", "--max-steps", "5", "--output-dir", "run") == 0
    model, settings = capsys.readouterr().out.splitlines()[:2]
    assert " parameters; data: " in model
    assert settings.endswith("5 optimizer steps")
    assert not Path("run").exists()


def test_loss_falls_below_the_unigram_entropy_of_real_text(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(subprocess.__file__).read_text(encoding="utf-8")
    (tmp_path / "real.txt").write_text(source, encoding="utf-8")
    data = prepare(read_corpus([tmp_path / "real.txt"]), vocab_size=300, cache_dir=tmp_path)
    counts = np.bincount(data.train.window(0, len(data.train)))
    shares = counts[counts > 0] / counts.sum()
    entropy = -float((shares * np.log(shares)).sum())
    flags = ["--data", str(tmp_path / "real.txt"), "--batch-size", "16", "--seq-len", "64"]
    flags += ["--max-steps", "100", "--epochs", "20", "--lr", "0.01", "--output-dir", "run"]
    assert train(*flags) == 0
    assert read_metrics("run")[0] > entropy
    assert np.mean(read_metrics("run")[-10:]) < entropy - 0.2
    val_loss = read_metrics("run", "val_loss")[-1]
    assert val_loss < entropy
    assert data.validation is not None
    bits = len(data.validation) * val_loss / math.log(2)
    assert read_metrics("run", "bits_per_byte")[-1] == pytest.approx(bits / data.validation_bytes)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line.startswith("sustained: ")
    assert "after 10 steps of warm-up, 90 steps in " in last_line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--seq-len", "0"], "--seq-len: must be at least 1"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "0"], "lr must be a positive number"),
        (["--dropout", "1"], "--dropout"),
        (["--preset", "huge"], "--preset"),
        (["--width", "34"], "width must be a multiple of 4 (decay gates), got 34"),
        (["--num-heads", "5"], "width must be a multiple of num_heads, got 32 and 5"),
        (["--num-layers", "0"], "--num-layers: must be at least 1"),
        (["--chunk-len", "6"], "chunk_len must be a multiple of"),
        (["--memory-levels", "16", "5"], "memory_levels must be positive, each a divisor"),
        (["--data", "absent.txt"], "absent.txt does not exist"),
        (["--seq-len", "100000"], "fewer than one sample"),
        (["--batch-size", "5000"], "fewer than one optimizer step"),
        (["--effective-batch-size", "3"], "effective_batch_size"),
        (["--prefetch-factor", "2"], "prefetch_factor"),
        (["--config", "absent.yaml"], "absent.yaml does not exist"),
        (["--config", "file"], "file"),
        (["--resume", "absent"], "absent: there is no checkpoint"),
        (["--resume", "file"], "not a readable checkpoint"),
        (["--resume"], "--resume needs a path"),
        (["--output-dir", "file"], "not a directory"),
        (["--output-dir", "file/below"], "cannot create the output directory"),
        (["--cache-dir", "file"], "cannot write the token cache"),
        (["--vocab-size", "2"], "--vocab-size: must be at least 3"),
        (["--tokenizer", "bpe", "--tokenize", "on-the-fly"], "use it with --tokenize ahead"),
        (["--tokenizer", "bpe", "--vocab-size", "99"], "at least 258"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    train: Train, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("not what is expected")
    assert train("--max-steps", "1", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_the_checkpoint_restores_the_tokenizer(train: Train, kind: str) -> None:
    flags = ["--tokenizer", kind, "--vocab-size", "280", "--max-steps", "1", "--output-dir", "run"]
    assert train(*flags) == 0
    content = read_checkpoint("run")
    tokenizer = tokenizer_from_dict(content["tokenizer"])
    assert tokenizer.kind == kind
    assert content["model"]["embedding.weight"].shape[0] == tokenizer.vocab_size <= 280
    assert tokenizer.decode(tokenizer.encode("naïve → 🌳 quick")) == "naïve → 🌳 quick"
    assert main(["--resume", "run", "--max-steps", "2"]) == 0
    assert main(["--resume", "run", "--vocab-size", "290"]) == 2


def test_empty_data_is_bad_input(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert train("--data", "empty") == 2
    assert "in empty" in capsys.readouterr().err


def test_a_run_is_never_written_over(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--max-steps", "1") == 0
    assert train("--max-steps", "1") == 0
    assert len(list(Path("runs").iterdir())) == 2
    assert train("--max-steps", "1", "--output-dir", "run") == 0
    before = Path("run/metrics.jsonl").read_bytes()
    assert train("--max-steps", "1", "--output-dir", "run") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert Path("run/metrics.jsonl").read_bytes() == before


def test_a_measured_run_writes_nothing(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(autotune, "is_trial", lambda: True)
    seen: list[torch.Tensor] = []

    def steps(
        loader: Iterable[torch.Tensor], *, units: Callable[[torch.Tensor], int]
    ) -> Iterator[torch.Tensor]:
        assert units.__name__ == "tokens"
        for batch in loader:
            assert units(batch) == batch.shape[0] * 24
            seen.append(batch)
            yield batch

    monkeypatch.setattr(autotune, "steps", steps)
    # More steps than asked for: it is autotune that ends a measured run.
    assert train("--max-steps", "1", "--checkpoint-every", "1", "--output-dir", "run") == 0
    assert len(seen) > 1
    assert not list(Path().iterdir())
    assert capsys.readouterr() == ("", "")


def write_best_config(path: Path, **settings: int | bool | None) -> None:
    config = dict.fromkeys(("prefetch_factor", "num_threads", "num_interop_threads"), None)
    config |= {"batch_size": 8, "gradient_accumulation_steps": 2, "num_workers": 1}
    config |= {"persistent_workers": True, "pin_memory": False, **settings}
    figures = dict.fromkeys(
        ("samples_per_s", "samples_per_s_low", "samples_per_s_high", "seconds_per_step"), 1.0
    )
    figures |= {"seconds_per_optimizer_step": 2.0, "cpu_utilisation": 0.5, "cpu_s_per_sample": 0.5}
    figures |= {"data_wait_share": 0.0, "peak_memory_bytes": 1}
    machine = {"fingerprint": "another", "cpu": "another CPU", "usable_cores": 64}
    machine |= {"memory_bytes": 1, "system": "x", "hostname": "y"}
    study = {"storage": "s", "name": "n", "trial_numbers": [1], "command": "c"}
    content = {
        "schema_version": 2,
        "config": config,
        "expected": figures,
        "baseline": {**figures, "config": config},
        "speedup": {"ratio": 1.5, "low": 1.4, "high": 1.6, "significant": True},
        "machine": machine,
        "study": {**study, "date": "2025-01-01", "versions": {}},
    }
    # JSON is YAML.
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ([], "batch 8 x accumulation 2 = 16 samples per optimizer step, 1 workers (prefetch 2"),
        (["--batch-size", "4"], "batch 4 x accumulation 4 = 16 samples"),
        (["--num-workers", "0"], "batch 8 x accumulation 2 = 16 samples per optimizer step, 0 w"),
        (["--effective-batch-size", "24"], "batch 8 x accumulation 3 = 24 samples"),
        (["--effective-batch-size", "4", "--batch-size", "2"], "batch 2 x accumulation 2 = 4 "),
        (["--prefetch-factor", "3"], "1 workers (prefetch 3 each)"),
        (["--num-threads", "1"], "threads: 1;"),
    ],
)
def test_flags_win_over_the_config_file_and_it_says_so(
    train: Train, flags: list[str], settings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_best_config(Path("best.yaml"))
    assert train("--config", "best.yaml", "--max-steps", "1", *flags) == 0
    output = capsys.readouterr()
    assert settings in output.out
    assert ("on the command line" in output.out) == any(
        flag in ("--batch-size", "--num-workers", "--prefetch-factor", "--num-threads")
        for flag in flags
    )
    assert "warning: " in output.err
    assert "tuned under other conditions" in output.err


def test_a_batch_size_that_does_not_divide_the_files_effective_one_is_refused(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    write_best_config(Path("best.yaml"))
    assert train("--config", "best.yaml", "--batch-size", "3") == 2
    assert "--batch-size 3 does not divide the effective batch size 16" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_process_group_leaves_a_checkpoint(
    text_dir: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "mm_rec.train", "--data", str(text_dir), "--seq-len", "24"]
    command += ["--num-workers", "1", "--epochs", "100000", "--output-dir", "run"]
    command += ["--log-every", "1", "--tokenize", "on-the-fly"]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60.0
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=30.0)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert f"interrupted by {number.name}" in out
    assert "sustained: " in out
    step = read_checkpoint(str(tmp_path / "run"))["position"]["step"]
    assert step == len(read_metrics(str(tmp_path / "run"))) > 0
