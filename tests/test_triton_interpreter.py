"""The tools that Triton's interpreter is tested with: bfloat16 as on the GPU, guarded memory."""

import os

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("interpreted kernels need TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl
from triton_interpreter import StrayAccess, guard_memory, narrow, repair_bfloat16, widen

from hybrid_kernels.triton import atrous_partition, launch

repair_bfloat16()
guard_memory()

# ---- bfloat16 ----------------------------------------------------------------------------------


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_every_bfloat16_survives_the_way_through_float32():
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    values = widen(bits)
    number = ~np.isnan(values)
    assert np.array_equal(narrow(values)[number], bits[number])
    assert np.isnan(widen(narrow(values[~number]))).all()


def test_narrowing_rounds_like_torch_ties_included():
    halfway = widen(np.arange(1, 0x7F80, 37, dtype=np.uint16)).view(np.uint32) | 0x8000
    others = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    values = np.concatenate([halfway.view(np.float32), others])
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(narrow(values), expected)


@triton.jit
def arithmetic(a, b, out, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(a + i), tl.load(b + i)
    tl.store(out + i, x + y)
    tl.store(out + N + i, x * y)
    tl.store(out + 2 * N + i, tl.where(x < y, x - y, y))
    tl.store(out + 3 * N + i, tl.maximum(x, y))
    tl.store(out + 4 * N + i, -tl.abs(x))
    tl.store(out + 5 * N + i, x * 1.5 + 0.25)
    tl.store(out + 6 * N + i, tl.exp2(x.to(tl.float32)))


def test_arithmetic_and_comparisons_round_once_per_operation():
    a, b = normal(64), normal(64, seed=1)
    out = torch.empty(7, 64, dtype=torch.bfloat16)
    arithmetic[(1,)](a, b, out, N=64)
    chosen = torch.where(a < b, a - b, b)
    exponentials = torch.exp2(a.float()).bfloat16()
    expected = [a + b, a * b, chosen, torch.maximum(a, b), -a.abs(), a * 1.5 + 0.25, exponentials]
    for got, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@triton.jit
def reductions(a, out, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(a + i[:, None] * N + i[None, :])
    tl.store(out + i, tl.sum(x, axis=1))
    tl.store(out + N + i, tl.max(x, axis=1))


def test_reductions_are_of_values_and_not_of_bits():
    a = normal(32, 32)
    out = torch.empty(2, 32, dtype=torch.bfloat16)
    reductions[(1,)](a, out, N=32)
    torch.testing.assert_close(out[0].float(), a.float().sum(1), rtol=2**-8, atol=1e-5)
    assert torch.equal(out[1], a.max(1).values)


@triton.jit
def product(a, b, out, N: tl.constexpr):
    i = tl.arange(0, N)
    where = i[:, None] * N + i[None, :]
    tl.store(out + where, tl.dot(tl.load(a + where), tl.load(b + where), input_precision="ieee"))


def test_matrix_products_accumulate_in_float32():
    a, b = normal(32, 32), normal(32, 32, seed=1)
    out = torch.empty(32, 32)
    product[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@triton.jit
def conversion(a, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(a + i).to(out.dtype.element_ty))


@pytest.mark.parametrize("other", [torch.float32, torch.float16, torch.float64, torch.int32])
def test_conversions_agree_with_torch(other):
    wide = (normal(256, dtype=torch.float32) * 100).to(other)
    rounded, back = torch.empty(256, dtype=torch.bfloat16), torch.empty(256, dtype=other)
    conversion[(1,)](wide, rounded, N=256)
    assert torch.equal(rounded, wide.bfloat16())
    conversion[(1,)](rounded, back, N=256)
    assert torch.equal(back, rounded.to(other))


# ---- memory ------------------------------------------------------------------------------------


@triton.jit
def add_one(x, n, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x + i, tl.load(x + i, mask=i < n, other=0.0) + 1.0, mask=i < n)


@triton.jit
def read_at(x, out, place):
    tl.store(out, tl.load(x + place))


def test_masked_accesses_pass_the_guard():
    x = torch.zeros(50)
    add_one[(1,)](x, 50, N=64)
    assert torch.equal(x, torch.ones(50))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_store_one_element_too_far_is_caught_before_it_happens(dtype):
    x = torch.zeros(50, dtype=dtype)
    with pytest.raises(Exception, match="outside the kernel's tensors"):
        add_one[(1,)](x, 51, N=64)
    assert torch.equal(x, torch.zeros(50, dtype=dtype))


@pytest.mark.parametrize("place", [-1, 50, 2**31])
def test_a_stray_load_is_caught(place):
    with pytest.raises(Exception, match="StrayAccess"):
        read_at[(1,)](torch.zeros(50), torch.zeros(1), place)


def test_a_tensor_that_the_kernel_was_not_given_is_out_of_bounds():
    near = torch.zeros(8)
    others = [torch.zeros(8) for _ in range(8)]
    distances = [(other.data_ptr() - near.data_ptr()) // 4 for other in others]
    for distance in distances:
        with pytest.raises(Exception, match=StrayAccess.__name__):
            read_at[(1,)](near, torch.zeros(1), distance)


def test_an_output_with_a_window_too_few_is_caught(monkeypatch):
    def allocate(shape, **options):
        return torch.zeros((shape[0], shape[1] - 1, *shape[2:]), **options)

    x = torch.zeros(1, 6, 6, 4)
    monkeypatch.setattr(atrous_partition.torch, "empty", allocate)
    with pytest.raises(Exception, match="store of 4 bytes"):
        atrous_partition.atrous_partition(x, 3, 1, 0.0)


# ---- launching ---------------------------------------------------------------------------------


def test_float64_is_refused_with_the_way_out():
    with pytest.raises(RuntimeError, match=r"qkv is float64: use backend 'cpu' or 'reference'"):
        launch.check_dtype("qkv", torch.zeros(1, dtype=torch.float64))


def test_more_programs_than_a_grid_takes_are_refused():
    x = torch.zeros(1)
    with pytest.raises(RuntimeError, match="split the batch"):
        launch.launch(add_one, 2**31, x, x, 1, N=16)
