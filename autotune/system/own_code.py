"""Tells a person's own code from that of libraries and of autotune."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python", "<frozen ")


def is_own_code(file: str) -> bool:
    """Whether a file of Python code is the person's own, as far as its path tells."""
    return not file.startswith(_PACKAGE) and not any(part in file for part in _LIBRARIES)
