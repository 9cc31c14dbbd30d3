"""Frameworks on a step that computes, tuned and trained: `python benchmarks/frameworks.py`.

Each script of `benchmarks/frameworks` has the call or calls that its framework needs
(docs/frameworks.md). It is tuned by `autotune run` as its user would, and then trained as it is and
with the settings found, in turn; the stated speed-up is compared with that of the epochs. What its
loader gives costs next to nothing; for scripts whose loader is slow, see `untouched.py`. A script
takes about three minutes; the trained ratio is the median of its pairs, with their range. Nothing
else should run meanwhile.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from untouched import how, run_autotune, trained_ratios

from autotune.best_config import read_best_config

SCRIPTS = Path(__file__).with_name("frameworks")
NAMES = ("hf_trainer", "lightning_fit", "accelerated", "keras_fit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--budget", default="90s", help="of each tuning")
    parser.add_argument("--pairs", type=int, default=6, help="trainings of each kind")
    args = parser.parse_args()
    table = Table("script", "settings found", "stated", "trained", "seconds of tuning")
    for name in args.only:
        row = run_script(name, args.budget, args.pairs)
        print(row, file=sys.stderr, flush=True)
        table.add_row(*row)
    Console(width=160).print(table)


def run_script(name: str, budget: str, num_pairs: int) -> tuple[str, ...]:
    """Tune a script, and train with the outcome and without."""
    command = ("python", f"{name}.py")
    with tempfile.TemporaryDirectory() as tuned, tempfile.TemporaryDirectory() as plain:
        for folder in (tuned, plain):
            shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)
        start_s = time.monotonic()
        done = run_autotune(tuned, "run", "--budget", budget, "--", *command)
        seconds = time.monotonic() - start_s
        if done.returncode:
            return (name, f"wrong: {done.stderr[-300:]}", "", "", f"{seconds:.0f}")
        best = read_best_config(Path(tuned) / "best_config.yaml")
        itself = (sys.executable, f"{name}.py")
        ratios = trained_ratios(
            lambda: subprocess.run(itself, **how(plain)),
            lambda: subprocess.run(itself, **how(tuned)),
            num_pairs,
        )
        speedup = best.speedup
        stated = f"{speedup.ratio:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})"
        trained = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        return (name, best.config.summary, stated, trained, f"{seconds:.0f}")


if __name__ == "__main__":
    main()
