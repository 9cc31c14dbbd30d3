"""The versions on which the speed of training depends."""

from __future__ import annotations

import platform
import sys


def versions() -> dict[str, str]:
    """Of Python, and of torch where this process has loaded it."""
    torch = sys.modules.get("torch")
    found = {"python": platform.python_version()}
    if torch is not None:
        found["torch"] = str(torch.__version__)
    return found
