"""Loops of which it is known what holds them back, diagnosed: `python benchmarks/planted.py`.

All that these loops do is sleep: a fixed time for each step, one for each sample, which threads
share, and one for each sample that is loaded. Prints what a whole run of autotune says of each (a
minute for each).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

LOOP = """
import time
import torch
import autotune

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 100000
    def __getitem__(self, index):
        time.sleep({item_s})
        return torch.zeros(1)

def main():
    default = autotune.ThroughputConfig(batch_size=4, num_threads=1)
    config = autotune.load_config("best_config.yaml", default=default)
    for batch in autotune.steps(config.dataloader(Data())):
        time.sleep({fixed_s} + {sample_s} * len(batch) / torch.get_num_threads())

if __name__ == "__main__":
    main()
"""
AXES = ("batch_size=2,4,8", "num_workers=0,1,2", "num_threads=1,2")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A loop with what holds it back.

    Attributes:
        bound: What its baseline's bottleneck must be called.
        critical: The settings that must be critical.
        useless: Those that must not be called a problem.
        item_s: Seconds of loading a sample.
        fixed_s: Seconds of a step, whatever is in it.
        sample_s: Seconds of computing a sample with one thread.
    """

    bound: str
    critical: frozenset[str]
    useless: frozenset[str]
    item_s: float
    fixed_s: float
    sample_s: float

    @property
    def script(self) -> str:
        """The training script."""
        return LOOP.format(item_s=self.item_s, fixed_s=self.fixed_s, sample_s=self.sample_s)

    def faults(self, severities: dict[str, str], bound: str) -> list[str]:
        """What is wrong with a diagnosis."""
        wanted = dict.fromkeys(self.critical, "critical") | dict.fromkeys(self.useless, "none")
        wrong = [f"{n} is {severities[n]}" for n, told in wanted.items() if severities[n] != told]
        return wrong if bound == self.bound else [*wrong, f"the baseline is called {bound}"]


CASES = {
    "loader": Planted(
        bound="data-bound",
        critical=frozenset({"num_workers"}),
        useless=frozenset({"num_threads"}),
        item_s=0.004,
        fixed_s=0.001,
        sample_s=0.0,
    ),
    "compute": Planted(
        bound="compute-bound",
        critical=frozenset({"num_threads"}),
        useless=frozenset({"num_workers"}),
        item_s=0.0,
        fixed_s=0.004,
        sample_s=0.006,
    ),
    "overhead": Planted(
        bound="overhead-bound",
        critical=frozenset({"batch_size"}),
        useless=frozenset({"num_workers", "num_threads"}),
        item_s=0.0,
        fixed_s=0.02,
        sample_s=0.0,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=CASES, help="of these only; repeatable")
    for name in parser.parse_args().case or CASES:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as directory:
            result = tune(case, Path(directory))
        severities, bound = read_diagnosis(result)
        wrong = case.faults(severities, bound)
        told = ", ".join(f"{setting}: {severity}" for setting, severity in severities.items())
        print(f"{name:9} {bound}; {told}: {'; '.join(wrong) or 'right'}", flush=True)


def tune(case: Planted, directory: Path, options: Sequence[str] = ()) -> dict[str, object]:
    """The result of a whole run on a planted loop, as `--json` gives it."""
    (directory / "train.py").write_text(case.script)
    axes = [part for axis in AXES for part in ("--axis", axis)]
    command = [sys.executable, "-m", "autotune", "run", "--json", "--quiet", *axes, *options]
    done = subprocess.run(
        [*command, "--", sys.executable, "train.py"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"autotune run: {done.stderr}")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def read_diagnosis(result: dict[str, object]) -> tuple[dict[str, str], str]:
    """The severity of each setting, and what the baseline is bound by."""
    severities = {e["change"]["setting"]: e["severity"] for e in result["effects"]}  # type: ignore[attr-defined]
    return severities, result["baseline_bottleneck"]["bound"]  # type: ignore[index]


if __name__ == "__main__":
    main()
