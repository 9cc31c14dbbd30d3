"""NVIDIA's management library (NVML) through `nvidia-ml-py`, where both are there.

It neither needs nor initialises CUDA. Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from autotune.system import cgroup

# Any of these says that there is a driver of NVIDIA's; the last is Windows' Subsystem for Linux.
_SIGNS = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")


class Nvml:
    """An initialised NVML, whose errors are answers: what it does not tell is None.

    Args:
        module: `pynvml`, or what stands for it.
    """

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def ask(self, function: str, *arguments: Any) -> Any:  # noqa: ANN401
        """What a function of NVML gives; None where it fails, or where this version lacks it."""
        call = getattr(self._module, function, None)
        if call is None:
            return None
        try:
            return call(*arguments)
        # The binding decodes names and loads functions itself.
        except (self._module.NVMLError, OSError, ValueError):
            return None

    def close(self) -> None:
        """Give NVML back; its handles are not valid any more."""
        self.ask("nvmlShutdown")


def open_nvml(root: Path = cgroup.ROOT) -> Nvml | None:
    """NVML, initialised; None where there is no driver, no `nvidia-ml-py`, or no agreement.

    Without a driver nothing is imported.

    Args:
        root: Where `proc` and `dev` are found.
    """
    if not any((root / sign).exists() for sign in _SIGNS):
        return None
    try:
        with warnings.catch_warnings():
            # A deprecated package of the same name warns when it is imported.
            warnings.simplefilter("ignore")
            module = importlib.import_module("pynvml")
    except (ImportError, OSError):
        return None
    if not hasattr(module, "NVMLError") or not hasattr(module, "nvmlInit"):
        return None
    try:
        module.nvmlInit()
    except (module.NVMLError, OSError):
        return None
    return Nvml(module)
