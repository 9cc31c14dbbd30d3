from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mm_rec import kernel
from mm_rec.scan import plain_scan, scan


@pytest.fixture(params=["kernel", "loop"])
def implementation(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Both ways to compute the recurrence: compiled, and in torch as without a compiler."""
    kernel.load.cache_clear()
    if request.param == "loop":
        monkeypatch.setenv("CC", "no-such-compiler")
        assert kernel.load(torch.float32) is None
    elif kernel.load(torch.float32) is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs a C compiler")
        pytest.skip("this machine has no C compiler")
    yield request.param
    kernel.load.cache_clear()


def make_inputs(batch: int, time: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [
        randn(batch, time, width),
        torch.sigmoid(randn(batch, time, width)),
        randn(batch, time, width),
        randn(2 * width),
        randn(2 * width, width) / width**0.5,
        randn(batch, width),
    ]
    return [value.to(dtype).requires_grad_() for value in inputs]


def gated_by_chunks(inputs: list[Tensor], chunk: int, position: int, h_gate: Tensor) -> Tensor:
    """The recurrence whose gates see the state at the beginning of their chunk."""
    z, gamma, gate_z, bias, weight, h = inputs
    width = z.shape[2]
    states = []
    for t in range(z.shape[1]):
        if (t + position) % chunk == 0:
            h_gate = h
        gates = h_gate @ weight.t() + bias
        s = torch.sigmoid(gates[:, :width])
        g = torch.sigmoid(gates[:, width:] + gate_z[:, t])
        h = (1.1 * gamma[:, t] + 0.1 * (1 - g)) / 1.2 * h + (s + 0.1 * g) * z[:, t]
        states.append(h)
    return torch.stack(states, dim=1)


# Sizes around the kernel's tiles: 1, 16, 64 and 128 columns, 1 and 4 rows.
@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [
        ((1, 1, 4), torch.float64, 1e-12),
        ((2, 7, 8), torch.float64, 1e-12),
        ((5, 33, 20), torch.float64, 1e-12),
        ((9, 20, 72), torch.float64, 1e-12),
        ((3, 200, 128), torch.float64, 1e-11),
        ((6, 200, 128), torch.float32, 2e-4),
    ],
)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_scan_equals_a_plain_float64_loop_forward_and_backward(
    implementation: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    tolerance: float,
    num_threads: int,
) -> None:
    exact = make_inputs(*shape, torch.float64)
    fast = make_inputs(*shape, dtype)
    torch.set_num_threads(num_threads)
    expected, got = plain_scan(*exact), scan(*fast)
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weights).sum().backward()
    (got * weights.to(dtype)).sum().backward()
    for value, reference in zip(fast, exact, strict=True):
        assert value.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(
            value.grad.double(), reference.grad, rtol=tolerance, atol=20 * tolerance
        )


@pytest.mark.parametrize(("chunk", "position"), [(4, 0), (4, 3), (8, 5), (64, 20), (7, 1)])
def test_gates_frozen_per_chunk_see_the_state_at_its_beginning(
    implementation: str, chunk: int, position: int
) -> None:
    inputs = make_inputs(3, 29, 8, torch.float64)
    h_gate = torch.randn(3, 8, dtype=torch.float64, requires_grad=True) if position else inputs[-1]
    got = scan(*inputs, gate_chunk_len=chunk, gate_position=position, h_gate_bd=h_gate)
    expected = gated_by_chunks(inputs, chunk, position, h_gate)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    wanted = [*inputs, h_gate] if position else inputs
    weights = torch.randn_like(expected)
    for value, reference in zip(
        torch.autograd.grad(got, wanted, weights),
        torch.autograd.grad(expected, wanted, weights),
        strict=True,
    ):
        torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-11)


def test_scan_passes_gradcheck(implementation: str) -> None:
    assert torch.autograd.gradcheck(scan, make_inputs(2, 3, 4, torch.float64))


def test_inputs_are_left_as_they_were(implementation: str) -> None:
    inputs = make_inputs(1, 5, 8, torch.float32)
    before = [value.detach().clone() for value in inputs]
    gradient = torch.ones(1, 5, 8)
    scan(*inputs).backward(gradient)
    assert all(torch.equal(value, kept) for value, kept in zip(inputs, before, strict=True))
    assert (gradient == 1).all()


def test_parts_of_wider_tensors_need_no_copy(implementation: str) -> None:
    inputs = make_inputs(3, 20, 8, torch.float64)
    wide = torch.randn(3, 20, 32, dtype=torch.float64)
    inputs[0] = wide[..., 8:16]
    expected = plain_scan(*inputs)
    torch.testing.assert_close(scan(*inputs), expected)
    inputs[0] = wide.transpose(0, 2)[:3, :, :3].transpose(1, 2)[:, :3].repeat(1, 7, 3)[:, :20, :8]
    torch.testing.assert_close(scan(*inputs), plain_scan(*inputs))


def test_a_second_derivative_is_refused(implementation: str) -> None:
    inputs = make_inputs(1, 3, 4, torch.float64)
    (gradient,) = torch.autograd.grad(scan(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once; .* plain_scan"):
        gradient.sum().backward()


def test_not_a_number_is_passed_on(implementation: str) -> None:
    inputs = [value.detach() for value in make_inputs(2, 9, 16, torch.float32)]
    inputs[0][1, 4, 3] = float("nan")
    h = scan(*inputs)
    assert h[0].isfinite().all()
    assert h[1, :4].isfinite().all()
    assert h[1, 4:].isnan().any(dim=1).all()


def test_gates_that_are_wide_open_or_shut_are_exact(implementation: str) -> None:
    inputs = [value.detach() for value in make_inputs(2, 9, 32, torch.float32)]
    inputs[2][0] = -300.0
    inputs[2][1] = 1e30
    inputs[3][:16] = 150.0
    inputs[3][16:32] = -1e30
    for value in inputs:
        value.requires_grad_()
    got, expected = scan(*inputs), plain_scan(*inputs)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(expected)
    for value, reference in zip(
        torch.autograd.grad(got, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(value, reference)


def test_low_precision_is_computed_in_float32(implementation: str) -> None:
    exact = make_inputs(2, 50, 16, torch.float32)
    low = [value.detach().bfloat16() for value in exact]
    got = scan(*low)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, plain_scan(*(value.float() for value in low)))


def test_state_stays_bounded_with_the_slowest_decay(implementation: str) -> None:
    width, time = 8, 5_000
    gamma = torch.full((1, time, width), 1.0 - 1e-6)
    # Both gates are shut, where the published decay is 1.2 and overflows.
    shut = torch.full((2 * width,), -50.0)
    h = scan(
        torch.ones(1, time, width),
        gamma,
        torch.zeros(1, time, width),
        shut,
        torch.zeros(2 * width, width),
        torch.ones(1, width),
    )
    assert h.isfinite().all()
    assert h.abs().max() <= 1.0


def test_the_operators_keep_torchs_rules(implementation: str) -> None:
    inputs = make_inputs(2, 5, 8, torch.float32)
    torch.library.opcheck(torch.ops.mm_rec.scan.default, (*inputs, inputs[-1], 1, 0))


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("compiler", ["", "no-such-compiler"])
def test_a_forked_child_may_use_more_threads(compiler: str) -> None:
    # As autotune does it: everything in the parent runs on one thread.
    code = """
        import multiprocessing, sys
        import torch
        torch.set_num_threads(1)
        from mm_rec.scan import plain_scan, scan
        inputs = [torch.randn(*s) for s in ((4, 30, 16),) * 3 + ((32,), (32, 16), (4, 16))]
        expected = plain_scan(*inputs)

        def child():
            torch.set_num_threads(2)
            sys.exit(0 if torch.allclose(scan(*inputs), expected, atol=1e-4) else 1)

        scan(*inputs)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        print(process.exitcode)
    """
    assert run_python(code, CC=compiler) == "0"


def test_the_kernel_leaves_denormal_numbers_alone() -> None:
    # A library linked with -ffast-math makes the whole process flush them to zero.
    code = """
        import torch
        from mm_rec import kernel
        kernel.load(torch.float32)
        print(torch.tensor([1e-40]).mul(2.0).item() > 0.0)
    """
    assert run_python(code) == "True"


LOADS = """
    import torch
    from mm_rec import kernel
    print(kernel.load(torch.float32) is not None)
"""


def test_a_broken_compiler_means_no_kernel(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    assert run_python(LOADS, CC=str(compiler), XDG_CACHE_HOME=str(tmp_path)) == "False"


def test_a_cache_that_cannot_be_written_means_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run_python(LOADS, XDG_CACHE_HOME=str(tmp_path / "file")) == "False"


def test_a_compiled_kernel_is_kept_and_nothing_else(tmp_path: Path) -> None:
    if kernel.load(torch.float32) is None:
        pytest.skip("this machine has no C compiler")
    assert run_python(LOADS, XDG_CACHE_HOME=str(tmp_path)) == "True"
    (kept,) = (tmp_path / "mm_rec/kernels").iterdir()
    written = kept.stat().st_mtime_ns
    assert run_python(LOADS, XDG_CACHE_HOME=str(tmp_path)) == "True"
    assert kept.stat().st_mtime_ns == written
