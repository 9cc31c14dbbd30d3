"""The two calls in ordinary training, and what they need."""

import subprocess
import sys

import autotune
from autotune import measured_loop
from autotune.batches import count_samples


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_in_ordinary_training_steps_is_the_loader_itself():
    loader = [1, 2, 3]
    assert autotune.steps(loader) is loader
    assert autotune.steps(loader, units=len) is loader
    assert not autotune.is_trial()


def test_samples_are_counted_in_batches_of_any_shape():
    import torch

    def count(batch):
        return count_samples(batch, 16)

    full, partial = torch.zeros(16, 3), torch.zeros(5, 3)
    assert count(full) == count([full, torch.zeros(16)]) == count({"x": (full,), "y": 2}) == 16
    assert count(partial) == count([partial, torch.zeros(5)]) == count({"x": (partial,)}) == 5
    # Time first, images of three channels, and parts of different lengths are no partial batches.
    assert count(torch.zeros(8, 16)) == 16
    assert count((tuple(torch.zeros(3, 4) for _ in range(16)), [{} for _ in range(16)])) == 16
    assert count((torch.zeros(5, 2), torch.zeros(9, 2))) == 16
    assert count([]) == count("text") == count(torch.tensor(3)) == count(None) == 16


def test_a_unit_is_named_by_its_function():
    def tokens(batch):
        return len(batch)

    assert measured_loop._unit_name(tokens) == "tokens"
    assert measured_loop._unit_name(lambda batch: 1) == "units"
    assert measured_loop._unit_name(None) is None


def test_the_coordinator_never_imports_torch():
    done = run_python(
        "import sys, autotune.cli, autotune.report.frame\nsys.exit('torch' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_a_training_script_pays_for_neither_optuna_nor_pandas():
    done = run_python(
        "import sys, autotune\n"
        "autotune.load_config(None, default=autotune.ThroughputConfig(batch_size=1))\n"
        "sys.exit(any(name in sys.modules for name in ('optuna', 'pandas', 'pydantic', 'torch')))"
    )
    assert done.returncode == 0, done.stderr
