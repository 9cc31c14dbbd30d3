"""Whether autotune does on a GPU what it says: `python benchmarks/gpu.py`, six minutes on one GPU.

Runs whole tunings and ordinary trainings of some loops (`benchmarks/gpu_loops`): images that are
decoded on the CPU, a language model in bfloat16, a tiny MLP, and one near the limit of the memory;
with more time (`--limit 900`) also a script that is not touched, Trainer, Lightning, and ranks.
Prints a table with pass or fail and the figures. `--quick` runs the most telling rows in three
minutes. Nothing else should run meanwhile. Needs the packages in NEEDS; uses nvidia-ml-py, Pillow
or OpenCV where they are installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

NEEDS = (
    *("torch", "numpy", "pandas", "scipy", "psutil", "rich", "click", "yaml", "jinja2", "wrapt"),
    *("optuna", "pydantic", "plotly", "threadpoolctl", "filelock"),
)
ROOT = Path(__file__).resolve().parents[1]
EXIT_FAILED, EXIT_UNUSABLE = 1, 2
_LIMIT_S, _QUICK_LIMIT_S = 360.0, 180.0
# Of the time for everything, what is kept for the table.
_RESERVED_S = 3.0
_WIDTH = 200


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is known of a row.

    Attributes:
        name: The row's.
        verdict: "pass", "fail", "no verdict" or "not reached".
        rule: When it passes.
        figures: What was measured.
        message: Why it did not pass.
        seconds: What it took.
    """

    name: str
    verdict: str = "not reached"
    rule: str = ""
    figures: Mapping[str, object] = dataclasses.field(default_factory=dict)
    message: str = ""
    seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows; the exit code."""
    if absent := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        print(f"benchmarks/gpu.py: needs {', '.join(absent)}: install autotune, or these packages")
        return EXIT_UNUSABLE
    import_from(ROOT)
    from benchmarks.gpu_processes import ask_torch
    from benchmarks.gpu_rows import ROWS
    from benchmarks.gpu_runs import Bench

    args = _parse(arguments, tuple(ROWS))
    if args.list:
        for name, row in ROWS.items():
            print(f"{name:18} {row.title}")
        return 0
    begin_s = time.monotonic()
    limit_s = args.limit or (_QUICK_LIMIT_S if args.quick else _LIMIT_S)
    torch_facts = ask_torch()
    if args.device == "cuda" and torch_facts["gpu"] is None:
        print("benchmarks/gpu.py: there is no GPU that torch can use here: nothing to run")
        return 0
    memory_bytes = torch_facts.get("memory_bytes")
    logs = (args.logs or Path(tempfile.mkdtemp(prefix="gpu-"))).resolve()
    logs.mkdir(parents=True, exist_ok=True)
    make_known(logs / "metadata")
    # Shared by trainings and trials, so that not every start compiles anew.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(logs / "torchinductor"))
    bench = Bench(
        device=args.device,
        quick=args.quick,
        scale=args.scale,
        logs=logs,
        end_s=begin_s + limit_s - _RESERVED_S,
        allow_busy=args.allow_busy,
        memory_bytes=memory_bytes if isinstance(memory_bytes, int) else None,
    )
    machine = describe_machine(torch_facts, args.device)
    print("; ".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    print(f"logs: {logs}", flush=True)
    names = [n for n, row in ROWS.items() if n in args.only or not args.only]
    if args.quick and not args.only:
        names = [name for name in names if ROWS[name].quick]
    found = {name: Found(name=name) for name in names}
    for name in names:
        found[name] = run_row(bench, name)
        print(describe(found[name]), flush=True)
        if args.json is not None:
            # After each: a run that is killed keeps what it has.
            write_json(args.json, machine, tuple(found.values()), time.monotonic() - begin_s)
    print_table(machine, tuple(found.values()), time.monotonic() - begin_s)
    return EXIT_FAILED if any(row.verdict == "fail" for row in found.values()) else 0


def import_from(directory: Path) -> None:
    """Import from a directory, here and in all that is started."""
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(directory) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(directory), *paths)))


def make_known(directory: Path) -> None:
    """Put autotune's version into a directory where it is not installed: runs record it."""
    try:
        metadata.version("autotune")
    except metadata.PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        named = f"Metadata-Version: 2.1\nName: autotune\nVersion: {project['version']}\n"
        found = directory / f"autotune-{project['version']}.dist-info"
        found.mkdir(parents=True, exist_ok=True)
        (found / "METADATA").write_text(named)
        import_from(directory)


def run_row(bench: object, name: str) -> Found:
    """Run a row within the time that is left; whatever it raises is its failure."""
    from benchmarks.gpu_processes import RowError, one_line
    from benchmarks.gpu_rows import ROWS
    from benchmarks.gpu_runs import Bench

    assert isinstance(bench, Bench)
    row, begin_s = ROWS[name], time.monotonic()
    if row.gpu_only and not bench.on_gpu:
        return Found(name=name, verdict="no verdict", message="needs a GPU")
    if bench.left_s < bench.scale * row.need_s:
        return Found(name=name, message=f"{bench.left_s:.0f} s were left")
    print(f"{name} ...", flush=True)
    try:
        verdict = row.run(bench)
    # A row must not take the others with it.
    except Exception as error:
        if not isinstance(error, RowError):
            traceback.print_exc()
        message = one_line(str(error)) or type(error).__name__
        return Found(name=name, verdict="fail", message=message, seconds=time.monotonic() - begin_s)
    word = {True: "pass", False: "fail", None: "no verdict"}[verdict.passed]
    return Found(
        name=name,
        verdict=word,
        rule=verdict.rule,
        figures=verdict.figures,
        message=verdict.message,
        seconds=time.monotonic() - begin_s,
    )


def describe_machine(torch_facts: Mapping[str, object], device: str) -> dict[str, object]:
    """What the figures belong to."""
    from autotune.system.machine import this_machine
    from benchmarks.gpu_processes import ask_driver, has_nvml

    machine = this_machine()
    gpu = torch_facts["gpu"] if device != "cpu" else None
    memory_bytes = torch_facts.get("memory_bytes")
    return {
        "GPU": gpu or "none",
        "GPU memory, MiB": memory_bytes // 2**20 if gpu and isinstance(memory_bytes, int) else 0,
        "driver": ask_driver("driver_version") or "unknown",
        "CUDA": torch_facts.get("cuda") or "none",
        "torch": torch_facts["torch"],
        "Python": sys.version.split()[0],
        "nvidia-ml-py": "installed" if has_nvml() else "not installed",
        "CPU": machine.cpu,
        "cores": machine.usable_cores,
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
    }


def describe(row: Found) -> str:
    """A row on one line."""
    figures = ", ".join(f"{name} {show(value)}" for name, value in row.figures.items())
    parts = [part for part in (row.message, figures) if part]
    return f"{row.name}: {row.verdict} ({row.seconds:.0f} s)" + (
        f": {'; '.join(parts)}" if parts else ""
    )


def show(value: object) -> str:
    """A figure for people."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {show(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(show, value)) or "none"
    return str(value)


def write_json(
    path: Path, machine: Mapping[str, object], rows: Sequence[Found], seconds: float
) -> None:
    """Write what is known so far; the file is whole at any time."""
    content = {
        "machine": dict(machine),
        "seconds": round(seconds, 1),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def print_table(machine: Mapping[str, object], rows: Sequence[Found], seconds: float) -> None:
    """All rows, with the machine above them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from benchmarks.gpu_rows import ROWS

    console = Console(width=_WIDTH, highlight=False)
    console.print(Text("; ".join(f"{name}: {value}" for name, value in machine.items())))
    num_passed = sum(row.verdict == "pass" for row in rows)
    num_judged = sum(row.verdict in ("pass", "fail") for row in rows)
    table = Table(
        title=f"{num_passed} of {num_judged} rows passed, {seconds:.0f} s", title_justify="left"
    )
    for heading in ("row", "verdict", "figures", "passes where"):
        table.add_column(heading)
    table.add_column("s", justify="right")
    for row in rows:
        figures = [f"{name}: {show(value)}" for name, value in row.figures.items()]
        cells = (
            ROWS[row.name].title,
            row.verdict,
            "\n".join(filter(None, (row.message, ", ".join(figures)))),
            row.rule,
            f"{row.seconds:.0f}",
        )
        table.add_row(*map(Text, cells))
    console.print(table)


def _parse(arguments: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the most telling rows, three minutes")
    parser.add_argument("--only", action="append", choices=names, default=[], metavar="ROW")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, help="writes what was found to a file, row by row")
    parser.add_argument("--logs", type=Path, help="directory for what the runs print and store")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--limit", type=float, help="seconds for everything (360; --quick 180)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on durations (1)")
    parser.add_argument("--allow-busy", action="store_true", help="as in autotune run")
    args = parser.parse_args(arguments)
    if args.scale <= 0:
        parser.error("--scale must be above 0")
    return args


if __name__ == "__main__":
    # The directory of the scripts has modules with names of this file's: imports start at the root.
    sys.path[0] = str(ROOT)
    sys.exit(main())
