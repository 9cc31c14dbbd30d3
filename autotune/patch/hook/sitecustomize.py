"""Python imports this as it starts, where `autotune` put its directory into PYTHONPATH.

A `sitecustomize` that the environment had before is run as well.
"""

import importlib.machinery
import importlib.util
import os
import sys


def _run_replaced() -> None:
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    elsewhere = [path for path in sys.path if os.path.abspath(path) != here]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _install() -> None:
    try:
        from autotune.patch.process import install
    except ImportError as error:
        sys.stderr.write(f"autotune cannot be imported by {sys.executable} ({error})\n")
    else:
        install()


_run_replaced()
_install()
