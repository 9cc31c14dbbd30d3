"""Jobs of two ranks, tuned and trained: `python benchmarks/ranks.py`.

Each row starts two ranks with a launcher that people have, tunes them as their user would, and then
trains as it is and with the settings found, in turn. The stated speed-up is compared with that of
the epochs. `--only losses` shows that the losses of updates are the same with another batch size,
`--only halves` compares step and loader by themselves with jobs that do nothing else, and
`--only pause` shows what half a minute without a request, and a killed rank, do to a job on two
machines. `two machines` runs its ranks on two hosts, which are network namespaces of this machine
(it needs root and iproute2); the second one reaches no coordinator. Nothing else should run
meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from untouched import epoch_s

from autotune.best_config import read_best_config
from autotune.blocks import BlockMode, BlockRequest
from autotune.config import ThroughputConfig
from autotune.instrument.fork_server import SETTINGS_VARIABLE
from autotune.measurement import StartMode
from autotune.trials.runner import open_runner
from autotune.trials.trial import Trial, TrialFailedError

SCRIPTS = Path(__file__).with_name("ranks")
_TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2")
# It starts ranks of a CPU only where it believes that there are GPUs.
_ACCELERATE = ("accelerate", "launch", "--multi_gpu", "--num_processes", "2")
_HOSTS = ("autotune-a", "autotune-b")
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
ROWS = {
    "torchrun": (*_TORCHRUN, "ddp.py"),
    "mp.spawn": ("python", "spawned.py"),
    "accelerate launch": (*_ACCELERATE, "accelerated.py"),
    "Trainer, torchrun": (*_TORCHRUN, "trainer.py"),
    "Lightning, torchrun": (*_TORCHRUN, "lightning_fit.py"),
    "two machines": (),
    "ranks per machine": ("torchrun", "--standalone", "--nproc-per-node", "1", "ddp.py"),
}
_SLOW_MS = "8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    choices = [*ROWS, "losses", "halves", "pause"]
    parser.add_argument("--only", nargs="+", choices=choices, default=list(ROWS))
    parser.add_argument("--budget", default="90s", help="of each tuning")
    parser.add_argument("--seconds", default="60", help="of each training")
    args = parser.parse_args()
    table = Table("job", "settings found", "stated", "trained", "seconds of tuning", "straggler")
    for name in args.only:
        if name == "losses":
            for job in ("torchrun", "mp.spawn", "accelerate launch", "Trainer, torchrun"):
                print_losses(job)
            print_losses("Lightning, torchrun")
            continue
        if name == "halves":
            for num_ranks in (1, 2):
                print_halves(num_ranks)
            continue
        if name == "pause":
            print_pause()
            continue
        row = run_job(name, args.budget, args.seconds)
        print(row, file=sys.stderr, flush=True)
        table.add_row(*row)
    if table.row_count:
        Console(width=190).print(table)


def run_job(name: str, budget: str, seconds: str) -> tuple[str, ...]:
    """Tune a job of two ranks, and train with the outcome and without."""
    with contextlib.ExitStack() as stack:
        tuned, plain = (stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(2))
        for folder in (tuned, plain):
            shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)
        command, environment = ROWS[name], _environment(SECONDS=seconds)
        far = None
        if name == "two machines":
            stack.enter_context(hosts())
            environment = _environment(SECONDS=seconds, SLOW_MS=_SLOW_MS)
            command, far = _on_host(0), _on_host(1)
        axes: tuple[str, ...] = ()
        if name == "ranks per machine":
            # Loading costs nothing, threads do little for the step, and a larger batch is not to be
            # had: that would bring one rank more.
            axes = ("--axis", "ranks_per_node=1,2", "--axis", "batch_size=8")
            environment |= {"ITEM_MS": "0", "RECURRENT": "yes"}
        start_s = time.monotonic()
        with beside(far, tuned, environment):
            run = (sys.executable, "-m", "autotune", "run", "--budget", budget, *axes, "--")
            done = _run((*run, *command), tuned, environment)
        took_s = time.monotonic() - start_s
        if done.returncode:
            return (name, f"wrong: {done.stderr[-400:]}", "", "", f"{took_s:.0f}", "")
        best = read_best_config(Path(tuned) / "best_config.yaml")
        ratios = []
        trained = (sys.executable, "-m", "autotune", "exec", "--", *command)
        for _ in range(1 + (float(seconds) < 60)):
            with beside(far, plain, environment):
                before = epoch_s(_run(command, plain, environment))
            with beside(far, tuned, environment):
                after = epoch_s(_run(trained, tuned, environment))
            ratios.append(before / after)
        speedup = best.speedup
        waited = [line for line in done.stdout.splitlines() if "all ranks wait for" in line]
        return (
            name,
            best.config.summary,
            f"{speedup.ratio:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})",
            f"{statistics.median(ratios):.2f}x",
            f"{took_s:.0f}",
            waited[0].partition(": ")[0] if waited else "none",
        )


def print_losses(name: str) -> None:
    """The losses of twenty updates, with small batches and with large ones."""
    losses = []
    for batch_size, steps in ((8, 2), (16, 1), (4, 4)):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)
            config = ThroughputConfig(
                batch_size=batch_size,
                gradient_accumulation_steps=steps,
                num_ranks=2,
                ranks_per_node=2,
            )
            # As what a trial starts gets them.
            settings = {SETTINGS_VARIABLE: json.dumps(config.to_dict())}
            done = _run(ROWS[name], folder, _environment(LOSSES="1", **settings))
            losses.append([float(loss) for loss in re.findall(r"^loss (.*)$", done.stdout, re.M)])
    apart = max(
        abs(first - other)
        for found in losses[1:]
        for first, other in zip(losses[0], found, strict=True)
    )
    print(
        f"{name}: {len(losses[0])} losses from {losses[0][0]:.4f} to {losses[0][-1]:.4f}, at most "
        f"{apart:.1e} apart with batches of 4, 8 and 16"
    )


def print_halves(num_ranks: int) -> None:
    """Step and loader by themselves, as trials tell them, and as jobs of nothing else do."""
    found: dict[str, list[float]] = {"step": [], "loader": []}
    plain: dict[str, list[float]] = {"step": [], "loader": []}
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    start = (torchrun, "--standalone", "--nproc-per-node", str(num_ranks))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)
        for _ in range(4):
            for half in plain:
                done = _run((*start, "half.py", half), folder, _environment())
                plain[half].append(float(done.stdout))
            with (
                contextlib.chdir(folder),
                open_runner(
                    (*start, "ddp.py"), start_mode=StartMode.FRESH, start_deadline_s=60
                ) as runner,
                runner.start_default() as trial,
            ):
                trial.measure(BlockRequest(min_s=0.5, settle_s=1.0), deadline_s=60)
                for half, mode in (("step", BlockMode.COMPUTE), ("loader", BlockMode.LOAD)):
                    request = BlockRequest(mode=mode, num_blocks=8, min_s=0.25)
                    blocks = trial.measure(request, deadline_s=60).blocks
                    found[half].append(statistics.median(block.units_per_s for block in blocks))
    for half, rates in found.items():
        told, true = statistics.median(rates), statistics.median(plain[half])
        print(
            f"{num_ranks} ranks, {half} alone: {told:,.0f} samples/s in trials, {true:,.0f} in "
            f"jobs of nothing else: {told / true:.2f} times"
        )


def print_pause() -> None:
    """A job on two machines that is paused, and of which the rank that is far is killed."""
    environment = _environment(GLOO_SOCKET_IFNAME="veth-a", OMP_NUM_THREADS="1")
    os.environ.update(environment)
    request = BlockRequest(num_blocks=4, min_s=0.25, settle_s=1.0)
    with hosts(), tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)
        with (
            beside(_on_host(1), folder, environment),
            open_runner(_on_host(0), start_mode=StartMode.FRESH, start_deadline_s=60) as runner,
        ):
            with runner.start_default() as trial:
                _say_rate("before the pause", trial, request)
                time.sleep(32.0)
                request = dataclasses.replace(request, settle_s=0.0)
                _say_rate("after 32 s", trial, request)
                for process in psutil.process_iter(["pid"]):
                    with contextlib.suppress(psutil.Error):
                        if process.environ().get("RANK") == "1" and "ddp.py" in process.cmdline():
                            process.kill()
                start_s = time.monotonic()
                try:
                    trial.measure(request, deadline_s=60)
                except TrialFailedError as error:
                    seconds = time.monotonic() - start_s
                    print(f"after {seconds:.1f} s: {error.failure.cause}: {error.failure.message}")
            with runner.start_default() as trial:
                _say_rate("the next trial", trial, dataclasses.replace(request, settle_s=1.0))


def _say_rate(when: str, trial: Trial, request: BlockRequest) -> None:
    blocks = trial.measure(request, deadline_s=60).blocks
    rate = statistics.median(block.units_per_s for block in blocks)
    print(f"{when}: {rate:,.0f} samples/s of {len(blocks[0].ranks)} ranks", flush=True)


@contextlib.contextmanager
def beside(
    command: tuple[str, ...] | None, folder: str, environment: dict[str, str]
) -> Iterator[None]:
    """On the second machine, whose torchrun is started again whenever it has ended."""
    if command is None:
        yield
        return
    loop = "while true; do " + " ".join(command) + "; done"
    with Path(os.devnull).open("wb") as nowhere:
        process = subprocess.Popen(
            ("/bin/sh", "-c", loop),
            cwd=folder,
            env=environment | {"GLOO_SOCKET_IFNAME": "veth-b"},
            stdout=nowhere,
            stderr=nowhere,
            start_new_session=True,
        )
    try:
        yield
    finally:
        subprocess.run(("pkill", "-KILL", "-s", str(process.pid)), check=False)
        subprocess.run(("pkill", "-KILL", "-f", "node-rank 1"), check=False)
        subprocess.run(("pkill", "-KILL", "-f", "ddp.py"), check=False)
        process.wait()


@contextlib.contextmanager
def hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them."""
    first, second = _HOSTS
    lines = [
        *(f"netns add {host}" for host in _HOSTS),
        f"link add veth-a netns {first} type veth peer name veth-b netns {second}",
        *(f"-n {host} link set lo up" for host in _HOSTS),
    ]
    for host, address, cable in zip(_HOSTS, _ADDRESSES, ("veth-a", "veth-b"), strict=True):
        lines += [f"-n {host} addr add {address}/24 dev {cable}", f"-n {host} link set {cable} up"]
    try:
        for line in lines:
            subprocess.run(("ip", *line.split()), check=True)
        yield
    finally:
        for host in _HOSTS:
            subprocess.run(("ip", "netns", "del", host), check=False)


def _on_host(node: int) -> tuple[str, ...]:
    torchrun = ("torchrun", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1")
    meeting = ("--master-addr", _ADDRESSES[0], "--master-port", "29511")
    return ("ip", "netns", "exec", _HOSTS[node], *torchrun, *meeting, "ddp.py")


def _environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "ACCELERATE_USE_CPU": "true", **more}


def _run(
    command: tuple[str, ...], folder: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    if any(_HOSTS[0] in word for word in command):
        environment = environment | {"GLOO_SOCKET_IFNAME": "veth-a"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    main()
