from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from autotune.analysis.bottleneck import diagnose
from autotune.analysis.comparison import choose
from autotune.analysis.result import Result, make_best_config
from autotune.blocks import Block, Probes, Sample, Settling
from autotune.config import ThroughputConfig
from autotune.measurement import Failure, FailureCause, StartMode, summarise
from autotune.space import Space
from autotune.study.definition import StudyDefinition
from autotune.study.records import Outcome, Phase, TrialRecord
from autotune.study.storage import storage_url
from autotune.study.store import StudyStore, open_study

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "inspect_study.ipynb"
RECORDED = NOTEBOOK.with_name("recorded_study.db")
BASELINE = ThroughputConfig(batch_size=8, num_threads=2)
FAST = ThroughputConfig(batch_size=64, num_workers=2, prefetch_factor=4, num_threads=2)
TOO_LARGE = ThroughputConfig(batch_size=64, num_workers=2, prefetch_factor=2, num_threads=1)
AXES = {
    "batch_size": (8, 16, 64),
    "num_workers": (0, 2),
    "prefetch_factor": (2, 4),
    "num_threads": (1, 2),
}


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "study.db"
    monkeypatch.setenv("AUTOTUNE_STORAGE", str(path))
    monkeypatch.delenv("AUTOTUNE_STUDY", raising=False)
    # The kernel must not see what a person has set up for their own notebooks.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    return path


def open_store(path: Path) -> StudyStore:
    """A study as it is when the command has introduced itself."""
    store = open_study(storage_url(path), "small", fresh=False)
    store.set_facts(
        command=["python", "train.py"],
        machine={
            "cpu": "a processor",
            "usable_cores": 2,
            "memory_bytes": 2**30,
            "system": "Linux",
            "hostname": "here",
        },
        baseline=BASELINE.to_dict(),
        effective_batch_size=None,
        versions={"python": "3.11"},
        axes={name: list(values) for name, values in AXES.items()},
        script_default=BASELINE.to_dict(),
        searched_axes={name: list(values) for name, values in AXES.items()},
        num_configurations=18,
    )
    return store


def complete(store: StudyStore, config: ThroughputConfig, phase: Phase, number: int = 1) -> None:
    """A trial of a loop that takes 1 ms to load a sample, and some time to compute a step."""
    num_workers = config.num_workers
    loading_s = 0.001 * config.batch_size / max(1, num_workers)
    computing_s = 0.02 / (config.num_threads or 1) + 0.0002 * config.batch_size * (1 + number / 50)
    step_s = max(loading_s, computing_s) if num_workers else loading_s + computing_s
    num_threads = config.num_threads or 1
    settling = Settling(num_steps=3, duration_s=1.0, step_s=step_s, settled=True)
    # Four blocks that differ a little, as blocks do.
    blocks = tuple(
        Block(
            num_steps=20,
            num_samples=20 * config.batch_size,
            num_units=20.0 * config.batch_size,
            duration_s=20 * step_s * drift,
            wait_s=20 * (step_s - computing_s) * drift,
            capacity_cores=2.0,
            cpu_s=20 * (computing_s * num_threads + loading_s * max(1, num_workers)),
            other_cpu_s=20 * step_s if config.batch_size == 16 else 0.0,
        )
        for drift in (1.0, 1.02, 0.98, 1.01)
    )
    samples = (Sample(blocks=blocks, settling=settling, memory_bytes=300 << 20),)
    probes = None
    if phase is Phase.CONFIRM:
        probes = Probes(
            compute_units_per_s=config.batch_size / computing_s,
            load_units_per_s=config.batch_size / loading_s,
            epoch_start_s=0.1,
        )
    mode = StartMode.FORK if phase in (Phase.PROBE, Phase.SEARCH) else StartMode.FRESH
    outcome = Outcome(
        measurement=summarise(samples, config, steps_per_epoch=1000, probes=probes),
        samples=samples,
        start_mode=mode,
        start_up_s=loading_s + (0.05 if mode is StartMode.FORK else 2.5),
        duration_s=5.0,
        unit=None,
    )
    rounds = {"round_number": number} if phase is Phase.CONFIRM else {}
    store.complete(store.begin(config, phase, **rounds), outcome)


def fail(store: StudyStore, config: ThroughputConfig, cause: FailureCause) -> None:
    failure = Failure(cause=cause, message=f"it was {cause}")
    store.fail(store.begin(config, Phase.SEARCH), failure)


def finish(store: StudyStore, path: Path) -> None:
    """Store the result, as a run does after its confirming runs."""
    runs: dict[ThroughputConfig, list[TrialRecord]] = {}
    for record in store.records():
        if record.phase is Phase.CONFIRM:
            runs.setdefault(record.config, []).append(record)
    rates = {config: [run.units_per_s for run in found] for config, found in runs.items()}
    best = make_best_config(
        choose(rates, BASELINE),
        runs,
        baseline=BASELINE,
        definition=StudyDefinition(name="small", command=("python", "train.py")),
        storage=storage_url(path),
        store=store,
    )
    searched = [record for record in store.records() if record.phase is Phase.SEARCH]
    result = Result(
        best=best,
        probability=0.9,
        runners_up=(),
        widened=(),
        tuning_s=60.0,
        num_configurations=18,
        num_measured=18,
        num_pruned=0,
        num_rounds=3,
        num_failed=1,
        num_disturbed=0,
        num_disturbed_runs=0,
        disturbed_by=(),
        waited_s=0.0,
        fork_differences=(),
        baseline_bottleneck=diagnose(BASELINE, runs[BASELINE], searched),
        bottleneck=diagnose(best.config, runs[best.config], searched),
        unsteady=False,
        config_path=None,
        start_mode=StartMode.FORK,
        fresh_reason=None,
        complete=True,
    )
    store.set_facts(result=dataclasses.asdict(result))


def execute() -> NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    return notebook


def text_of(cell: NotebookNode) -> str:
    """What a cell printed, and the tables that it showed; no warning is among it."""
    assert not [output for output in cell.outputs if output.get("name") == "stderr"]
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    )


def num_images(cell: NotebookNode) -> int:
    images = [output.data.get("image/png") for output in cell.outputs if "data" in output]
    return sum(base64.b64decode(image).startswith(b"\x89PNG") for image in images if image)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.long
def test_a_finished_study_with_a_failed_trial_gives_every_plot(storage: Path) -> None:
    store = open_store(storage)
    complete(store, BASELINE, Phase.BASELINE)
    complete(store, BASELINE, Phase.PROBE)
    for config in Space(axes=AXES).configurations(BASELINE):
        if config == TOO_LARGE:
            fail(store, config, FailureCause.OUT_OF_MEMORY)
        elif config != BASELINE:
            complete(store, config, Phase.SEARCH)
    for number in (1, 2, 3):
        for config in (FAST, BASELINE):
            complete(store, config, Phase.CONFIRM, number)
    finish(store, storage)

    cells = code_cells(execute())

    plots = [cell for cell in cells if "plt.show()" in cell.source]
    assert len(plots) >= 5
    assert [num_images(cell) for cell in plots] == [1] * len(plots)
    text = "\n".join(text_of(cell) for cell in cells)
    assert "it was out of memory" in text
    assert FAST.summary in text
    assert "batch_size 64 is the largest that was tried" in text


def test_a_study_that_is_being_written_is_shown_as_far_as_it_went(storage: Path) -> None:
    store = open_store(storage)
    complete(store, BASELINE, Phase.BASELINE)
    fail(store, BASELINE, FailureCause.CRASHED)
    complete(store, FAST, Phase.SEARCH)
    fail(store, TOO_LARGE, FailureCause.INTERRUPTED)
    store.begin(TOO_LARGE, Phase.SEARCH)

    # The store stays open, as it is while a run goes on.
    cells = code_cells(execute())

    assert store.records()[-1].failure is None
    assert sum(num_images(cell) for cell in cells) >= 5
    text = "\n".join(text_of(cell) for cell in cells)
    assert "No complete trial yet: probe, confirm." in text
    assert "The run is not finished." in text
    assert "has not come to an answer" in text


def test_a_study_of_only_a_baseline_says_what_is_missing(storage: Path) -> None:
    complete(open_store(storage), BASELINE, Phase.BASELINE)

    cells = code_cells(execute())

    text = "\n".join(text_of(cell) for cell in cells)
    assert "No complete trial yet: probe, search, confirm." in text
    assert "No trial of the search has given figures yet" in text
    assert "No confirming runs yet." in text


def test_the_recorded_study_opens_without_a_run_and_its_plots_answer_to_the_mouse(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_PLOTS", "plotly")
    monkeypatch.setenv("AUTOTUNE_STORAGE", str(RECORDED))
    before = sorted(RECORDED.parent.iterdir()), RECORDED.read_bytes()

    cells = code_cells(execute())

    text = "\n".join(text_of(cell) for cell in cells)
    assert re.search("machine: .*Xeon.*2 usable cores", text)
    assert "speed-up:" in text
    kinds = [kind for cell in cells for output in cell.outputs for kind in output.get("data", ())]
    # The waterfall, a map for each pair of axes, utilisation and history.
    assert kinds.count("application/vnd.plotly.v1+json") >= 6
    # It was only read.
    assert (sorted(RECORDED.parent.iterdir()), RECORDED.read_bytes()) == before
