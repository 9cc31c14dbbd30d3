"""Where settings files lie: one for a machine, or one for each kind of machine.

`best_config.yaml` is for one machine. Where several kinds of machines share a folder, each has its
own file in the folder beside it, `best_config.d/<kind>.yaml`.
"""

from __future__ import annotations

from pathlib import Path

_SUFFIX = ".d"


def settings_exist(path: Path) -> bool:
    """Whether there are settings for any machine.

    Args:
        path: A settings file, or a folder of some.
    """
    return (path.exists() and path.suffix != _SUFFIX) or bool(files_of_kinds(path))


def files_of_kinds(path: Path) -> list[Path]:
    """The files in the folder beside a settings file, or in that folder itself."""
    return sorted(_folder(path).glob("*.yaml"))


def file_of_kind(path: Path, kind: str) -> Path:
    """Where the settings of a kind of machine are kept.

    Args:
        path: A settings file, or the folder of those of all kinds.
        kind: See `Machine.kind`.
    """
    return _folder(path) / f"{kind}.yaml"


def _folder(path: Path) -> Path:
    return path if path.suffix == _SUFFIX else path.parent / f"{path.stem}{_SUFFIX}"
