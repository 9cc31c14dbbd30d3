"""The two calls in ordinary training, and what they need."""

import subprocess
import sys

import autotune
from autotune.instrument.training_loop import _unit_name


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_in_ordinary_training_steps_is_the_loader_itself():
    loader = [1, 2, 3]
    assert autotune.steps(loader) is loader
    assert autotune.steps(loader, units=len) is loader
    assert not autotune.is_trial()


def test_a_unit_is_named_by_its_function():
    def tokens(batch):
        return len(batch)

    assert _unit_name(tokens) == "tokens"
    assert _unit_name(lambda batch: 1) == "units"
    assert _unit_name(None) is None


def test_the_coordinator_never_imports_torch():
    done = run_python(
        "import sys, autotune.cli, autotune.report.dataframe\nsys.exit('torch' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_a_training_script_pays_for_neither_optuna_nor_pandas():
    done = run_python(
        "import sys, autotune\n"
        "autotune.load_config(None, default=autotune.ThroughputConfig(batch_size=1))\n"
        "sys.exit(any(name in sys.modules for name in ('optuna', 'pandas', 'pydantic', 'torch')))"
    )
    assert done.returncode == 0, done.stderr


def test_no_framework_is_imported_before_it_is_used():
    done = run_python(
        "import sys\n"
        "import autotune.cli, autotune.integrations.lightning, autotune.integrations.transformers\n"
        "names = ('accelerate', 'lightning', 'pytorch_lightning', 'transformers')\n"
        "sys.exit(any(name in sys.modules for name in names))"
    )
    assert done.returncode == 0, done.stderr
