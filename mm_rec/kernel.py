"""The recurrence's C code: compiled for this machine at first use, kept, and called.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from mm_rec.cache_dir import default_cache_dir

SOURCE = Path(__file__).with_name("scan_kernel.c")
REALS = {torch.float32: "float", torch.float64: "double"}
# The exponential function is vectorised under -ffast-math only. No value is lost by it but the
# last bits: the one comparison in the code passes NaN on whichever way it is decided.
COMPILE_FLAGS = ("-O3", "-ffast-math", "-fPIC", "-pthread")
COMPILE_LIMIT_S = 120.0


NUMBERS = (
    *("batch", "time", "width", "z_batch_stride", "z_time_stride"),
    *("gate_chunk", "gate_position"),
)
POINTERS = (
    *("z", "gamma", "gate_z", "bias", "weight", "h_first", "h_gate"),
    *("h", "gates", "grad_h", "grad_z", "grad_gamma", "grad_gates"),
    *("grad_h_first", "grad_h_gate", "buffer"),
)


class Arguments(ctypes.Structure):
    """The struct Scan of the C code, its fields in the same order."""

    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in NUMBERS),
        *((name, ctypes.c_void_p) for name in POINTERS),
    )


@functools.cache
def load(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the compiled code for float32 or float64, None where it cannot be had."""
    if dtype not in REALS:
        return None
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_library(compiler, REALS[dtype])))
    except (OSError, subprocess.SubprocessError):
        # Whatever is wrong with the compiler, the same results come without it.
        return None


def call(
    function: str, num_threads: int, z_btd: Tensor, sizes: dict[str, int], **arrays: Tensor
) -> None:
    """Call one of the library's functions.

    Args:
        function: `scan_forward` or `scan_backward`.
        num_threads: Threads to share the batch between.
        z_btd: The input of the recurrence; only its last dimension need be dense.
        sizes: The other numbers of the struct.
        arrays: Its other pointers, as dense tensors of z's dtype.
    """
    library = load(z_btd.dtype)
    assert library is not None
    assert z_btd.stride(2) == 1
    assert all(array.is_contiguous() and array.dtype == z_btd.dtype for array in arrays.values())
    batch, time, width = z_btd.shape
    arguments = Arguments(
        batch=batch,
        time=time,
        width=width,
        z_batch_stride=z_btd.stride(0),
        z_time_stride=z_btd.stride(1),
        z=z_btd.data_ptr(),
        **sizes,
        **{name: array.data_ptr() for name, array in arrays.items()},
    )
    getattr(library, function)(ctypes.byref(arguments), ctypes.c_ssize_t(num_threads))


def _compiler() -> tuple[str, ...] | None:
    """Return the C compiler's command: $CC, else cc, gcc or clang."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(command[0])
        if path is not None:
            return (path, *command[1:])
    return None


def _library(compiler: tuple[str, ...], real: str) -> Path:
    """Return the library's path, compiling it where it is not there yet."""
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    command = (*compiler, *COMPILE_FLAGS, native, f"-DREAL={real}")
    name = f"scan-{real}-{_key(command)}.so"
    directory = default_cache_dir() / "kernels"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=directory, prefix=".building-") as building:
            built = _compile(command, compiler, Path(building))
            # Whole or not at all, also when two processes compile at once.
            built.replace(path)
    return path


def _compile(command: tuple[str, ...], compiler: tuple[str, ...], directory: Path) -> Path:
    def run(*arguments: str) -> None:
        subprocess.run(arguments, check=True, capture_output=True, timeout=COMPILE_LIMIT_S)

    code, library = directory / "scan.o", directory / "scan.so"
    run(*command, "-c", str(SOURCE), "-o", str(code))
    # In a step of its own, without -ffast-math: linking with it would add start-up code that
    # makes the whole process flush denormal numbers to zero.
    run(*compiler, "-shared", "-pthread", str(code), "-o", str(library), "-lm")
    return library


def _key(command: tuple[str, ...]) -> str:
    """Return a hash of all that the compiled code depends on."""
    status = Path(command[0]).stat()
    digest = hashlib.blake2b(digest_size=12)
    for part in (*command, status.st_size, status.st_mtime_ns, _processor()):
        digest.update(f"{part}\0".encode())
    digest.update(SOURCE.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """Return what names the processor's instructions; the cache may be shared by machines."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return line
    except OSError:
        pass
    return platform.processor()
