"""Small files: strict reading of YAML, atomic writing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from autotune.errors import BadInputError

# No file of this project is a hundredth of this; a larger one is a mistake or an attack.
MAX_YAML_BYTES = 1 << 20


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, without aliases (which can explode) and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {mark.line + 1}: aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: repeated key {', '.join(sorted(repeated))}")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, made of plain values only.

    Raises:
        BadInputError: The file cannot be read, is no YAML, or holds no mapping.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise BadInputError(f"{path}: larger than {MAX_YAML_BYTES} bytes: not a settings file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read: {_reason(error)}") from error
    try:
        data = yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise BadInputError(f"{path}: must hold a mapping of names to values")
    return data


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` so that a reader sees the old file or the new one, never a part.

    Raises:
        BadInputError: The directory cannot be written; a file already there stays as it is.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes private files; what training reads should have the usual mode.
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadInputError(f"{path}: cannot be written: {_reason(error)}") from error


def make_folder(path: Path) -> None:
    """Make a folder where there is none.

    Raises:
        BadInputError: It cannot be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be made: {_reason(error)}") from error


def check_writable(path: Path) -> None:
    """Make sure that `path` can be written later, without touching what is there.

    Raises:
        BadInputError: It is a directory, or its directory is not there or cannot be written.
    """
    if path.is_dir():
        raise BadInputError(f"{path}: is a directory: name a file")
    if not path.parent.is_dir():
        raise BadInputError(f"{path}: cannot be written: there is no directory {path.parent}")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise BadInputError(f"{path}: cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
