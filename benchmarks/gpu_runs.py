"""What `benchmarks/gpu.py` runs: whole tunings, ordinary training, forked and fresh trials.

Each start keeps its output in the directory of logs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from autotune.best_config import BestConfig, read_best_config
from autotune.blocks import BlockRequest
from autotune.config import ThroughputConfig
from autotune.errors import AutotuneError
from autotune.measurement import Failure, StartMode
from autotune.report.study_view import StudyView, open_view
from autotune.study.definition import StudyDefinition
from autotune.study.records import Outcome, Phase, TrialRecord
from autotune.system.load import QuietKeeper
from autotune.system.machine import this_machine
from autotune.trials.runner import open_runner
from autotune.trials.trial import Trial, TrialFailedError
from autotune.tuning.rounds import RoundPlan, measure_round
from autotune.tuning.trial_runs import Limits
from benchmarks.gpu_processes import (
    START_S,
    RowError,
    end_group,
    last_line,
    line_within,
    one_line,
    show_tail,
    wait_or_end,
)

LOOPS = Path(__file__).with_name("gpu_loops").resolve()
# What the scripts have by themselves.
BATCH_SIZES = {"images": 64, "language_model": 16, "tiny_mlp": 256}
# The script that does not know autotune, and the one that is started by torchrun.
UNTOUCHED, RANKS = "untouched", "ranks"
# Just enough for a first batch.
_FIRST_STEPS = BlockRequest(min_s=0.0, num_blocks=0, settle_s=0.001)
# A run may be so much longer than its budget: starting up, and the answer.
_OVER_BUDGET_S = 30.0
# What a run takes outside of its budget: importing, and the answer.
_ANSWER_S = 6.0
_HOG = """
import sys, torch
a = torch.randn(8192, 8192, device=sys.argv[1], dtype=torch.bfloat16)
print("ready", flush=True)
while True:
    for _ in range(20):
        b = a @ a
    torch.cuda.synchronize()
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What an ordinary training printed.

    Attributes:
        samples_per_s: After the warm-up.
        measured_s: Seconds that this is the rate of.
        first_step_s: From the begin of training to the end of the first step.
        num_steps: Steps, the warm-up included.
        memory_bytes: Peak memory reserved on the GPU; None on a CPU.
    """

    samples_per_s: float
    measured_s: float
    first_step_s: float
    num_steps: int
    memory_bytes: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A whole run of autotune.

    Attributes:
        output: What it printed.
        seconds: What it took.
        view: Its study.
        best: Its settings file.
        directory: Where both lie.
    """

    output: str
    seconds: float
    view: StudyView
    best: BestConfig
    directory: Path

    @property
    def searched(self) -> list[TrialRecord]:
        """The trials of the search that were measured."""
        return [r for r in self.view.records if r.measurement is not None and r.phase.is_brief]

    @property
    def confirmed(self) -> list[TrialRecord]:
        """The trials that ran in fresh processes for the answer."""
        found = (r for r in self.view.records if r.measurement is not None)
        return [r for r in found if r.phase in (Phase.CONFIRM, Phase.BASELINE)]

    @property
    def failures(self) -> list[TrialRecord]:
        """The trials that failed."""
        return [r for r in self.view.records if r.failure is not None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One configuration, forked and fresh.

    Attributes:
        forked_s: From the request for a forked trial to its first batch.
        cold_s: The same of a fresh process.
        turn_ratios: Throughput forked ÷ fresh, of blocks that were measured in turn.
    """

    forked_s: tuple[float, ...]
    cold_s: tuple[float, ...]
    turn_ratios: tuple[float, ...]


@dataclasses.dataclass(slots=True, kw_only=True)
class Bench:
    """Runs things within the time for all of them, on one device.

    Attributes:
        device: "cuda" or "cpu".
        quick: Whether the time is short.
        scale: Factor on all durations.
        logs: Directory of what is kept.
        end_s: Monotonic time at which the time for everything is up.
        allow_busy: Whether to measure beside other processes.
        memory_bytes: Of the GPU.
    """

    device: str
    quick: bool
    scale: float
    logs: Path
    end_s: float
    allow_busy: bool = False
    memory_bytes: int | None = None
    tuned: dict[str, Tuned | RowError] = dataclasses.field(default_factory=dict)
    compared: dict[str, Comparison | RowError] = dataclasses.field(default_factory=dict)

    @property
    def left_s(self) -> float:
        """Seconds until the time for everything is up."""
        return self.end_s - time.monotonic()

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to look at."""
        return self.device != "cpu"

    def lasting(self, full_s: float, quick_s: float) -> float:
        """A duration, by how much time there is."""
        return self.scale * (quick_s if self.quick else full_s)

    def command(self, loop: str, *options: str) -> list[str]:
        """How a training script is started."""
        small = () if self.on_gpu else ("--small",)
        script = str(LOOPS / f"{loop}.py")
        return [*_python_of(loop, options), script, "--device", self.device, *small, *options]

    def tune(self, name: str, loop: str, *options: str, budget_s: float, **study: object) -> Tuned:
        """Run autotune on a training script; a run of that name is run once only.

        Args:
            name: Of the study, and of the directory in the logs.
            loop: The script.
            options: Of the script.
            budget_s: Of the run.
            study: What else the study file says.

        Raises:
            RowError: It failed, or did not end in time.
        """
        if name not in self.tuned:
            content = {"name": name, "command": self.command(loop, *options), **study}
            if loop == UNTOUCHED:
                content["patch"] = True
            try:
                self.tuned[name] = self._tune(name, content, budget_s)
            except (RowError, AutotuneError) as error:
                self.tuned[name] = RowError(str(error))
        found = self.tuned[name]
        if isinstance(found, RowError):
            raise found
        return found

    def _tune(self, name: str, study: Mapping[str, object], budget_s: float) -> Tuned:
        directory = self._directory(name)
        # JSON is YAML, too.
        (directory / "study.yaml").write_text(json.dumps(study, indent=2))
        busy = ["--allow-busy"] if self.allow_busy else []
        budget_s = max(1.0, min(budget_s, self.left_s - _ANSWER_S))
        budget = ["--budget", f"{budget_s:.0f}s"]
        tool = [sys.executable, "-m", "autotune", "run", "--study", "study.yaml", *budget, *busy]
        begin_s = time.monotonic()
        log = directory / "output.txt"
        with log.open("w") as file:
            process = subprocess.Popen(
                tool,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = wait_or_end(process, min(budget_s + _OVER_BUDGET_S, self.left_s))
        output = log.read_text(errors="replace")
        if code != 0:
            show_tail(name, output)
            how = "did not end in time" if code is None else f"exit code {code}"
            raise RowError(f"autotune run: {how}: {last_line(output)}")
        return Tuned(
            output=output,
            seconds=time.monotonic() - begin_s,
            view=open_view(str(directory / "studies" / "autotune.db")),
            best=read_best_config(directory / "best_config.yaml"),
            directory=directory,
        )

    def train(
        self, name: str, trainings: Sequence[tuple[str, Sequence[str], Path | None]], seconds: float
    ) -> list[Training]:
        """Train some scripts for some seconds each, in turn.

        All start at once, and wait before they touch the GPU until it is their turn.

        Args:
            name: Of the directory in the logs.
            trainings: Script, options, and settings file of each.
            seconds: How long each is measured.

        Raises:
            RowError: One failed, or did not end in time.
        """
        with contextlib.ExitStack() as stack:
            waiting = []
            for number, (loop, options, settings) in enumerate(trainings):
                directory = self._directory(f"{name}_{number}")
                if settings is not None:
                    shutil.copy(settings, directory / "best_config.yaml")
                command = self.command(loop, "--seconds", f"{seconds:.2f}", "--wait", *options)
                if loop == UNTOUCHED and settings is not None:
                    command = [sys.executable, "-m", "autotune", "exec", "--", *command]
                log = stack.enter_context((directory / "output.txt").open("w"))
                process = subprocess.Popen(
                    command,
                    cwd=directory,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
                stack.callback(end_group, process)
                waiting.append((process, directory))
            for process, directory in waiting:
                self._read_line(process, directory, START_S)
            return [self._train(process, directory, seconds) for process, directory in waiting]

    def _train(self, process: subprocess.Popen[str], directory: Path, seconds: float) -> Training:
        assert process.stdin is not None
        # One that has ended says why below.
        with contextlib.suppress(OSError):
            process.stdin.write("\n")
            process.stdin.flush()
        line = self._read_line(process, directory, START_S + 2 * seconds)
        try:
            return Training(**json.loads(line))
        finally:
            end_group(process)

    def _read_line(self, process: subprocess.Popen[str], directory: Path, limit_s: float) -> str:
        assert process.stdout is not None
        line = line_within(process.stdout, min(limit_s, self.left_s))
        if line:
            return line
        time.sleep(0.2)
        output = (directory / "output.txt").read_text(errors="replace")
        show_tail(directory.name, output)
        how = "took too long" if process.poll() is None else "failed"
        raise RowError(f"training {directory.name} {how}: {last_line(output)}")

    def compare_starts(self, loop: str, *, confirm_s: float, num_rounds: int) -> Comparison:
        """Start and run the script's own settings, forked and fresh; once only for each script.

        Raises:
            RowError: It cannot be forked, or a trial failed.
        """
        if loop not in self.compared:
            try:
                self.compared[loop] = self._compare_starts(loop, confirm_s, num_rounds)
            except TrialFailedError as error:
                show_tail(loop, error.failure.output)
                self.compared[loop] = RowError(f"a trial failed: {describe(error.failure)}")
            except (RowError, AutotuneError) as error:
                self.compared[loop] = RowError(str(error))
        found = self.compared[loop]
        if isinstance(found, RowError):
            raise found
        return found

    def _compare_starts(self, loop: str, confirm_s: float, num_rounds: int) -> Comparison:
        num_threads = max(1, this_machine().usable_cores // 2)
        forked = ThroughputConfig(batch_size=BATCH_SIZES[loop], num_threads=num_threads)
        # An inter-op pool that nothing uses makes two configurations of one.
        fresh = dataclasses.replace(forked, num_interop_threads=2)
        command = tuple(self.command(loop))
        definition = StudyDefinition(name=loop, command=command, confirm_s=confirm_s)
        limits = Limits(step_s=None, first_step_deadline_s=START_S, end_s=self.end_s)
        plan = RoundPlan(
            definition=definition,
            limits_of=lambda _: limits,
            keeper=QuietKeeper(0.0 if self.allow_busy else 10.0),
            side_by_side=True,
            probed=False,
        )
        shuffle = random.Random(0)
        with open_runner(command, start_mode=None, start_deadline_s=START_S) as runner:
            runner.end_s = self.end_s

            def start(config: ThroughputConfig) -> Trial:
                mode = StartMode.FORK if config == forked else StartMode.FRESH
                trial = runner.start(config, mode)
                if trial.mode is not mode:
                    trial.close()
                    raise RowError(f"{loop} cannot be forked: {runner.fresh_reason}")
                return trial

            # Uncounted: brings up the host.
            start(forked).close()
            # By themselves: beside others a trial waits for its turn.
            forked_s = [first_batch_s(start(forked)) for _ in range(2 * num_rounds)]
            cold_s = [first_batch_s(start(fresh)) for _ in range(num_rounds)]
            ratios = []
            for _ in range(num_rounds):
                found = measure_round((forked, fresh), start, plan, shuffle)
                pair = (rates_in_turn(found[config]) for config in (forked, fresh))
                # Where a last turn was disturbed for one of them, it has a block less.
                ratios += [one / other for one, other in zip(*pair, strict=False)]
        return Comparison(forked_s=tuple(forked_s), cold_s=tuple(cold_s), turn_ratios=tuple(ratios))

    @contextlib.contextmanager
    def hog(self) -> Iterator[None]:
        """Another process that keeps the GPU busy."""
        with (self.logs / "hog.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _HOG, self.device],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
            try:
                assert process.stdout is not None
                if not line_within(process.stdout, min(START_S, self.left_s)):
                    raise RowError("the process that keeps the GPU busy did not start")
                yield
            finally:
                end_group(process)

    def _directory(self, name: str) -> Path:
        directory = self.logs / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory


def _python_of(loop: str, options: Sequence[str]) -> list[str]:
    """What starts a training script: Python, or torchrun."""
    if loop != RANKS:
        return [sys.executable]
    # Several ranks on one GPU are more than NCCL can do.
    num_ranks = 1 if "nccl" in options else 2
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", str(num_ranks)]


def first_batch_s(trial: Trial) -> float:
    """Seconds from the request for a trial to its first batch; the trial ends there."""
    with trial:
        trial.measure(_FIRST_STEPS, deadline_s=START_S)
        assert trial.start_up_s is not None
        return trial.start_up_s


def rates_in_turn(found: Outcome | Failure) -> list[float]:
    """Throughput of the blocks of all turns of a round that nothing disturbed."""
    samples = outcome(found).samples
    return [s.blocks[-1].units_per_s for s in samples if s.blocks and not s.disturbed]


def outcome(found: Outcome | Failure) -> Outcome:
    """What a trial found.

    Raises:
        RowError: It failed.
    """
    if isinstance(found, Failure):
        show_tail("a trial", found.output)
        raise RowError(f"a trial failed: {describe(found)}")
    return found


def describe(failure: Failure) -> str:
    """A failure on one line."""
    return f"{failure.cause}: {one_line(failure.message)}"


def settings_option(settings: Mapping[str, object]) -> tuple[str, str]:
    """The option of a training script that gives it these settings."""
    return "--settings", json.dumps(dict(settings))
