"""Temporary files for what is too large for memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from mm_rec.errors import OutputError


@contextmanager
def scratch_file() -> Iterator[BinaryIO]:
    """Give a file without a name, which is gone when nothing has it open or mapped any more.

    Raises:
        OutputError: The temporary directory is full or missing.
    """
    try:
        with tempfile.TemporaryFile() as file:
            yield cast("BinaryIO", file)
    except OSError as error:
        raise OutputError(
            f"cannot write a temporary file: {error.strerror}; name a directory with room for it "
            "in TMPDIR"
        ) from error
