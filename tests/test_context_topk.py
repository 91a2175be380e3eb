"""context_topk: the harness's properties, and the order of what cannot be told apart."""

import pytest
import torch
from harness import DEVICE, OpSuite

import python_ref.ops
from hybrid_kernels import context_topk
from hybrid_kernels.samples import context_topk as samples


class TestContextTopk(OpSuite):
    declaration = samples.DECLARATION


@pytest.mark.parametrize("n", [1, 7, 40])
def test_of_equal_means_the_lower_index_wins(n):
    u = torch.full((2, 40, 5), 0.3, device=DEVICE)
    assert torch.equal(context_topk(u, n).cpu(), torch.arange(n, dtype=torch.int32).expand(2, -1))


def test_equal_tokens_are_equal_wherever_they_lie():
    """The mean of a token must not depend on its neighbours in a vector."""
    u = torch.randn(1, 1, 37, device=DEVICE).expand(1, 45, -1).contiguous()
    assert torch.equal(context_topk(u, 20)[0].cpu(), torch.arange(20, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_the_largest_and_zeros_are_equal(dtype):
    values = [0.0, float("nan"), -0.0, float("-inf"), float("inf"), float("nan"), -1.0, 0.0]
    u = torch.tensor(values, dtype=dtype, device=DEVICE).view(1, -1, 1)
    for n in range(1, len(values) + 1):
        expected = python_ref.ops.context_topk(u, n)
        assert torch.equal(context_topk(u, n), expected), n


def test_a_choice_has_no_gradient():
    u = torch.randn(2, 6, 4, device=DEVICE, requires_grad=True)
    assert not context_topk(u, 2).requires_grad
