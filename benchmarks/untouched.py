"""Scripts that do not call autotune, tuned as they are: `python benchmarks/untouched.py`.

Runs `autotune run --patch` on each script of `benchmarks/untouched` as its user would, and then
trains as it is and with `autotune exec`, in turn. Each prints how long its epochs take; the stated
speed-up is compared with that of these epochs. Those that cannot be tuned like this must say so in
one line. A script takes about two minutes. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from autotune.best_config import read_best_config

SCRIPTS = Path(__file__).with_name("untouched")
# What is right for each: it is tuned, or refused with these words.
EXPECTED = {
    "imagenet": "",
    "mnist": "",
    "timm_style": "",
    "notebook": "",
    "gan": "",
    "by_hand": "",
    "accelerated": "",
    "ddp": "",
    "hf_trainer": "",
    "lightning_trainer": "",
    "nanogpt": "from no DataLoader",
    "two_loaders": "several DataLoaders",
}
_EPOCH = re.compile(r"^epoch .*: ([0-9.]+) s, \d+ steps$", re.MULTILINE)
_LAUNCHERS = {"ddp": ("torchrun", "--nproc-per-node", "2")}
# The first epochs of a training pay for its start.
_NUM_EPOCHS, _NUM_FIRST = 6, 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one script."""

    name: str
    outcome: str
    seconds: float
    stated: str = ""
    trained: str = ""
    left: Sequence[str] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=EXPECTED, default=list(EXPECTED))
    parser.add_argument("--budget", default="90s", help="of each tuning")
    parser.add_argument("--pairs", type=int, default=2, help="trainings of each kind")
    args = parser.parse_args()
    rows = []
    for name in args.only:
        rows.append(run_script(name, args.budget, args.pairs))
        print(rows[-1], file=sys.stderr, flush=True)
    table = Table("script", "outcome", "stated", "trained", "seconds of tuning", "left behind")
    for row in rows:
        left = ", ".join(row.left) or "nothing"
        seconds = f"{row.seconds:.0f}"
        table.add_row(row.name, row.outcome, row.stated, row.trained, seconds, left)
    Console(width=200).print(table)
    sys.exit(any(row.outcome.startswith("wrong") for row in rows))


def run_script(name: str, budget: str, num_pairs: int) -> Row:
    """Tune a script and train with the outcome."""
    command = (*_LAUNCHERS.get(name, ("python",)), f"{name}.py")
    with tempfile.TemporaryDirectory() as folder:
        for path in SCRIPTS.glob("*.py"):
            shutil.copy(path, folder)
        before = files(folder)
        start_s = time.monotonic()
        done = run_autotune(folder, "run", "--patch", "--budget", budget, "--", *command)
        seconds = time.monotonic() - start_s
        ours = {"best_config.yaml", "studies", "__pycache__"}
        left = sorted(path for path in files(folder) - before if path.split("/")[0] not in ours)
        refusal = EXPECTED[name]
        if refusal:
            [*_, line] = done.stderr.splitlines() or [""]
            is_right = done.returncode == 2 and refusal in line
            outcome = f"refused: {line}" if is_right else f"wrong: {done.stderr[-300:]}"
            return Row(name=name, outcome=outcome, seconds=seconds, left=left)
        if done.returncode:
            return Row(name=name, outcome=f"wrong: {done.stderr[-300:]}", seconds=seconds)
        best = read_best_config(Path(folder) / "best_config.yaml")
        itself = (_program(command[0]), *command[1:])
        ratios = trained_ratios(
            lambda: subprocess.run(itself, **how(folder)),
            lambda: run_autotune(folder, "exec", "--", *command),
            num_pairs,
        )
        speedup = best.speedup
        return Row(
            name=name,
            outcome=best.config.summary,
            seconds=seconds,
            stated=f"{speedup.ratio:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})",
            trained=f"{statistics.median(ratios):.2f}x",
            left=left,
        )


def trained_ratios(
    plain: Callable[[], subprocess.CompletedProcess[str]],
    tuned: Callable[[], subprocess.CompletedProcess[str]],
    num_pairs: int,
) -> list[float]:
    """How much faster the epochs of one kind of training are, both run in turn; ascending."""
    return sorted(epoch_s(plain()) / epoch_s(tuned()) for _ in range(num_pairs))


def run_autotune(folder: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run autotune in a folder."""
    return subprocess.run([sys.executable, "-m", "autotune", *arguments], **how(folder))


def how(folder: str) -> dict[str, object]:
    """Arguments of `subprocess.run` for a script in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "EPOCHS": str(_NUM_EPOCHS), "PATH": path}
    return {"cwd": folder, "env": environment, "capture_output": True, "text": True}


def _program(name: str) -> str:
    return sys.executable if name == "python" else str(Path(sys.executable).with_name(name))


def epoch_s(done: subprocess.CompletedProcess[str]) -> float:
    """Seconds that an epoch of a training took, by what it printed."""
    if done.returncode:
        raise SystemExit(f"a training failed:\n{done.stderr}")
    epochs = [float(text) for text in _EPOCH.findall(done.stdout)]
    return statistics.median(epochs[_NUM_FIRST:])


def files(folder: str) -> set[str]:
    """Paths of all that is below a folder."""
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*")}


if __name__ == "__main__":
    main()
