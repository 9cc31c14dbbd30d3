"""Switches of torch as settings: the precision of float32 products, and how cuDNN chooses.

Neither of them begins to use a GPU.
"""

from __future__ import annotations

import sys

# The values of the setting. They are stored in studies: never rename one, never change the order.
DEFAULT, *_ = PRECISIONS = ("default", "highest", "high", "medium")


def apply_torch_flags(*, matmul_precision: str, cudnn_benchmark: bool) -> None:
    """Set the switches of this process.

    Args:
        matmul_precision: One of `PRECISIONS`; "default" leaves it as the script has it.
        cudnn_benchmark: Whether cuDNN is to try its algorithms and keep the fastest; False leaves
            it as the script has it.

    Sources: the documentation of torch.set_float32_matmul_precision and of torch.backends.cudnn.
    """
    if matmul_precision == DEFAULT and not cudnn_benchmark:
        return
    import torch

    if matmul_precision != DEFAULT:
        torch.set_float32_matmul_precision(matmul_precision)
    if cudnn_benchmark:
        torch.backends.cudnn.benchmark = True


def set_otherwise(*, matmul_precision: str, cudnn_benchmark: bool) -> dict[str, str]:
    """The settings that the script has set otherwise by itself, each with the reason."""
    torch, reasons = sys.modules.get("torch"), {}
    if torch is None:
        return {}
    # Asked only where it matters: torch raises where a script mixes this with its newer switches.
    if matmul_precision != DEFAULT:
        precision = torch.get_float32_matmul_precision()
        if precision != matmul_precision:
            reasons["matmul_precision"] = f"the script sets the precision {precision}"
    found = bool(torch.backends.cudnn.benchmark)
    if found != cudnn_benchmark:
        reasons["cudnn_benchmark"] = f"the script sets torch.backends.cudnn.benchmark = {found}"
    return reasons
