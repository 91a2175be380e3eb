"""mixed_head_attention: the harness's properties, and what is particular to this op."""

import torch
from harness import DEVICE, OpSuite

from hybrid_kernels import mixed_head_attention, multiscale_attention
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import mixed_head_attention as samples


class TestMixedHeadAttention(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str):
    return samples.DECLARATION.by_name[name].build(Maker(torch.float32, DEVICE))


def test_layers_that_mix_nothing_leave_attention():
    q, k, v, *_ = arguments("one_size")
    eye, zero = torch.eye(2, device=DEVICE), torch.zeros(2, device=DEVICE)
    out = mixed_head_attention(q, k, v, eye, zero, eye, zero)
    torch.testing.assert_close(out, multiscale_attention(q, [k], [v]))


def test_tokens_may_be_permuted():
    q, k, v, *rest = arguments("five_heads")
    order = torch.randperm(q.shape[1], generator=torch.Generator().manual_seed(0)).to(DEVICE)
    moved = mixed_head_attention(q[:, order], k[:, order], v[:, order], *rest)
    torch.testing.assert_close(moved, mixed_head_attention(q, k, v, *rest)[:, order])


def test_the_second_bias_adds_the_sum_of_the_values():
    q, k, v, w1, b1, w2, b2, scale = arguments("one_size")
    out = mixed_head_attention(q, k, v, w1, b1, w2, b2, scale)
    plain = mixed_head_attention(q, k, v, w1, b1, w2, torch.zeros_like(b2), scale)
    expected = plain + b2[:, None] * v.sum(dim=1, keepdim=True)
    torch.testing.assert_close(out, expected)


def test_the_first_bias_has_no_influence_and_no_gradient():
    q, k, v, w1, b1, *rest = arguments("one_size")
    b1 = (b1 + 5).requires_grad_()
    out = mixed_head_attention(q, k, v, w1, b1, *rest)
    torch.testing.assert_close(out, mixed_head_attention(q, k, v, w1, torch.zeros_like(b1), *rest))
    (grad,) = torch.autograd.grad(out.square().sum(), b1)
    assert torch.equal(grad, torch.zeros_like(b1))
