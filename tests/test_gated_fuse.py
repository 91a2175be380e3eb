"""gated_fuse: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite
from torch.utils.flop_counter import FlopCounterMode

import python_ref.ops
from hybrid_kernels import gated_fuse
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import gated_fuse as samples


class TestGatedFuse(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_one_tensor_of_all_branches_equals_a_list_of_them():
    x, m, weight, bias, scale, _ = arguments("drop_path")
    stacked = torch.stack(m, dim=3).requires_grad_()
    y = gated_fuse(x, stacked, weight, bias, scale)
    assert torch.equal(y, gated_fuse(x, m, weight, bias, scale))
    y.sum().backward()
    leaves = [branch.requires_grad_() for branch in m]
    apart = torch.autograd.grad(gated_fuse(x, leaves, weight, bias, scale).sum(), leaves)
    assert torch.equal(stacked.grad, torch.stack(apart, dim=3))


def test_16_bit_parameters_are_converted_and_get_16_bit_gradients():
    x, m, *parameters, _ = arguments("drop_path", torch.bfloat16)
    narrow = [p.bfloat16().requires_grad_() for p in parameters]
    y = gated_fuse(x, m, *narrow)
    assert torch.equal(y, gated_fuse(x, m, *(p.detach().float() for p in narrow)))
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(y.float().sum(), narrow))


@pytest.mark.parametrize("wide", ["x", "m"])
def test_autocast_computes_in_the_widest_dtype_of_x_and_m(wide):
    x, m, weight, bias, scale, _ = arguments("drop_path", torch.bfloat16)
    if wide == "x":
        x = x.float()
    else:
        m = [m[0].float(), m[1]]
    x.requires_grad_()
    m[1].requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        y = gated_fuse(x, m, weight, bias, scale)
    expected = gated_fuse(x.float(), [branch.float() for branch in m], weight, bias, scale)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
    grad_x, grad_m = torch.autograd.grad(y.sum(), (x, m[1]))
    assert (grad_x.dtype, grad_m.dtype) == (x.dtype, m[1].dtype)


def test_outside_autocast_dtypes_must_agree():
    x, m, weight, bias, scale, _ = arguments("drop_path", torch.bfloat16)
    with pytest.raises((ValueError, RuntimeError), match=r"m\[0\] has .*bfloat16; expected"):
        gated_fuse(x.float(), m, weight, bias, scale)


def test_mean_without_residual_does_not_depend_on_x():
    x, m, *_ = arguments("mean")
    x.requires_grad_()
    y = gated_fuse(x, m, None, None, residual=False)
    torch.testing.assert_close(y, sum(m) / len(m))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


def test_residual_inside_equals_residual_of_every_branch():
    """Gates sum to one, so one residual stands for those of all branches."""
    x, m, weight, bias, _, _ = arguments("stage2")
    apart = python_ref.ops.gated_fuse(x, [x + branch for branch in m], weight, bias, None, False)
    torch.testing.assert_close(gated_fuse(x, m, weight, bias), apart)


@pytest.mark.parametrize("place", ["x", "m"])
@pytest.mark.parametrize("payload", [0, 1, 0x2AAAAA])
def test_nan_stays_nan(place, payload):
    x, m, weight, bias, scale, _ = arguments("drop_path")
    poisoned = x if place == "x" else m[0]
    poisoned.view(torch.int32)[0, 1, 2, 3] = 0x7FC00000 | payload
    y = gated_fuse(x, m, weight, bias, scale)
    assert y[0, 1, 2, 3].isnan()
    assert y.isnan().sum() == 1


def test_flops_are_those_of_the_gate_as_a_convolution():
    x, m, weight, bias, scale, _ = arguments("drop_path")
    with FlopCounterMode(display=False) as counter:
        gated_fuse(x, m, weight, bias, scale)
    assert counter.get_total_flops() == 2 * len(m) * x.numel()
