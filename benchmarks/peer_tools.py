"""Runs one other tuner on one of the workloads: `peer_tools.py TOOL WORKLOAD --seconds 120`.

Prints the settings that it chose, as JSON. Each is used as its documentation says; TPE and ASHA,
which search as long as they may, are told when their time is up, and the others end by themselves.
benchmarks/peers.py runs this in an environment that has them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.data import DataLoader
from workloads import WORKLOADS

BASELINE_BATCH = 32
WARM_UP_S = 1.0
# Of the memory, what a tool that looks for its limit may take.
MEMORY_SHARE = 0.6
AXES = {
    "batch_size": (8, 16, 32, 64, 128, 256, 512),
    "num_workers": (0, 1, 2, 3, 4),
    "prefetch_factor": (2, 4, 8),
    "num_threads": (1, 2),
}
Settings = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--seconds", type=float, required=True, help="wall clock for everything")
    args = parser.parse_args()
    # What they print is not the answer.
    with contextlib.redirect_stdout(sys.stderr):
        settings = TOOLS[args.tool](args.workload, time.monotonic() + args.seconds)
    print(json.dumps(settings))


def tpe(workload: str, end_s: float) -> Settings:
    """Optuna's TPE, a process for each trial: a second of warm-up, four that count."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        # By rank, so that it knows the order.
        settings = {
            name: values[trial.suggest_int(name, 0, len(values) - 1)]
            for name, values in AXES.items()
        }
        if not settings["num_workers"]:
            del settings["prefetch_factor"]
        trial.set_user_attr("settings", settings)
        script = Path(__file__).with_name("workloads.py")
        options = ["--config", json.dumps(settings), "--seconds", "4", "--warm-up", str(WARM_UP_S)]
        left_s = max(0.1, end_s - time.monotonic())
        try:
            done = subprocess.run(
                [sys.executable, str(script), workload, *options],
                capture_output=True,
                check=True,
                timeout=left_s,
            )
        except subprocess.SubprocessError as error:
            raise optuna.TrialPruned from error
        return float(json.loads(done.stdout)["samples_per_s"])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"batch_size": AXES["batch_size"].index(BASELINE_BATCH), "num_workers": 0})
    study.optimize(objective, timeout=max(0.1, end_s - time.monotonic()))
    return dict(study.best_trial.user_attrs["settings"])


def asha(workload: str, end_s: float) -> Settings:
    """Ray Tune with its ASHA scheduler: rates are reported each second, for at most four."""
    import ray
    from ray import tune

    directory = str(Path(__file__).parent)

    def trainable(settings: Settings) -> None:
        sys.path.insert(0, directory)
        for rate in rates(workload, settings, seconds=4):
            tune.report({"samples_per_s": rate})

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": os.cpu_count()}),
            param_space={name: tune.choice(values) for name, values in AXES.items()},
            tune_config=tune.TuneConfig(
                metric="samples_per_s",
                mode="max",
                num_samples=-1,
                scheduler=tune.schedulers.ASHAScheduler(max_t=4, grace_period=1),
                time_budget_s=end_s - time.monotonic() - 2.0,
            ),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        )
        best = tuner.fit().get_best_result()
    settings = dict(best.config or {})
    if not settings["num_workers"]:
        del settings["prefetch_factor"]
    return settings


def loadtune(workload: str, end_s: float) -> Settings:
    """loadtune, with its defaults; it leaves the batch size alone on a CPU."""
    import loadtune as tool

    make_dataset, make_model = WORKLOADS[workload]
    result = tool.tune(
        tool.Workload(
            name=workload,
            make_dataset=make_dataset,
            make_model=make_model,
            make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
            train_step=lambda model, optimizer, batch, device: step(model, optimizer, batch),
            default_batch_size=BASELINE_BATCH,
        )
    )
    settings: Settings = {"batch_size": BASELINE_BATCH}
    if result.speedup > 1.0 and result.best is not None:
        found = result.best.knobs
        for name in ("num_workers", "prefetch_factor", "num_threads"):
            value = getattr(found, name)
            if value is not None and (name != "prefetch_factor" or found.num_workers):
                settings[name] = value
    return settings


def lightning(workload: str, end_s: float) -> Settings:
    """Lightning's BatchSizeFinder in its default mode; it knows nothing of the rest."""
    import lightning as pl
    from lightning.pytorch.tuner import Tuner

    # It doubles the batch until memory runs out, which it notices if the kernel has not killed it.
    most = int(MEMORY_SHARE * psutil.virtual_memory().total)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    make_dataset, make_model = WORKLOADS[workload]

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = BASELINE_BATCH
            self.model = make_model()
            self.dataset = make_dataset()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:  # noqa: ANN401
            x, y = batch
            return nn.functional.cross_entropy(self.model(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(self.dataset, batch_size=self.batch_size, shuffle=True)

    with tempfile.TemporaryDirectory() as directory:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, default_root_dir=directory
        )
        batch_size = Tuner(trainer).scale_batch_size(Module(), init_val=BASELINE_BATCH)
    return {"batch_size": int(batch_size or BASELINE_BATCH)}


TOOLS: dict[str, Callable[[str, float], Settings]] = {
    "tpe": tpe,
    "asha": asha,
    "loadtune": loadtune,
    "lightning": lightning,
}


def rates(workload: str, settings: Settings, *, seconds: int) -> Iterator[float]:
    """Samples per second so far, each second after a first that does not count.

    Of a loop that trains in this process, epoch after epoch.
    """
    make_dataset, make_model = WORKLOADS[workload]
    torch.set_num_threads(settings["num_threads"])
    dataset, model = make_dataset(), make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    num_workers = settings["num_workers"]
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=settings["batch_size"],
        shuffle=True,
        num_workers=num_workers,
        prefetch_factor=settings["prefetch_factor"] if num_workers else None,
    )
    begun_s, start_s, num_samples, reported = time.monotonic(), 0.0, 0, 0
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        step(model, optimizer, batch)
        now_s = time.monotonic()
        if not start_s:
            start_s = now_s if now_s >= begun_s + WARM_UP_S else 0.0
            continue
        num_samples += len(batch[0])
        if now_s >= start_s + reported + 1:
            reported += 1
            yield num_samples / (now_s - start_s)
        if reported >= seconds:
            return


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> torch.Tensor:  # noqa: ANN401
    """A training step, as the workloads make it."""
    x, y = batch
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


if __name__ == "__main__":
    main()
