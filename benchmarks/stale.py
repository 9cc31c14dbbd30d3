"""Whether `autotune check` tells settings that hold from stale ones: `python benchmarks/stale.py`.

Tunes examples/plain_pytorch.py, and checks its settings file as it is, and made stale in one of
three ways: the number of threads changed by hand, found with another torch (as the file then says),
and a machine with fewer cores (`taskset`). A check is right where its exit code says so: 0 for a
file that holds, 3 for one that does not. Prints for each state how many checks were right, and how
long one took; `--times` says how often each is checked.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
LOOP = ROOT / "examples" / "plain_pytorch.py"
HOLDS, STALE = 0, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5, help="checks of each state (5)")
    parser.add_argument("--budget", default="3m", help="of the tuning (3m)")
    args = parser.parse_args()
    one_core = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory(prefix="stale-") as name:
        folder = Path(name)
        run(folder, "run", "--budget", args.budget, "--", "python", str(LOOP))
        text = (folder / "best_config.yaml").read_text()
        print(text.splitlines()[0].removeprefix("# Written by autotune: "), flush=True)
        print(f"{'state':24} {'right':>8} {'s, median':>10}  verdict")
        for state, edit, expected, prefix in (
            ("as it was found", lambda data: None, HOLDS, ()),
            ("threads changed by hand", change_threads, STALE, ()),
            ("another torch", change_torch, STALE, ()),
            ("fewer cores", lambda data: None, STALE, one_core),
        ):
            show(state, folder, edited(text, edit), expected, prefix, times=args.times)


def show(
    state: str, folder: Path, text: str, expected: int, prefix: Sequence[str], *, times: int
) -> None:
    """Check a file so often, and print how that went."""
    seconds, right, said = [], 0, ""
    for _ in range(times):
        (folder / "best_config.yaml").write_text(text)
        begin_s = time.monotonic()
        done = run(folder, "check", "--quiet", "best_config.yaml", prefix=prefix, expected=None)
        seconds.append(time.monotonic() - begin_s)
        right += done.returncode == expected
        said = done.stdout.strip() or done.stderr.strip()
    print(
        f"{state:24} {f'{right} of {times}':>8} {statistics.median(seconds):10.0f}  {said}",
        flush=True,
    )


def edited(text: str, edit: Callable[[dict[str, Any]], object]) -> str:
    data = yaml.safe_load(text)
    edit(data)
    return str(yaml.safe_dump(data, sort_keys=False))


def change_threads(data: dict[str, Any]) -> None:
    data["config"]["num_threads"] = 2 if data["config"]["num_threads"] == 1 else 1


def change_torch(data: dict[str, Any]) -> None:
    data["study"]["versions"]["torch"] = "2.12.0+cpu"


def run(
    folder: Path, *options: str, prefix: Sequence[str] = (), expected: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Run autotune; where another exit code than the expected one is an error, say so."""
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "autotune", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search_path},
        capture_output=True,
        text=True,
        check=False,
    )
    if expected is not None and done.returncode != expected:
        sys.exit(done.stderr)
    return done


if __name__ == "__main__":
    main()
