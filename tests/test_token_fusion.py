"""token_fusion: the harness's properties, and what is particular to this op."""

import torch
from harness import DEVICE, OpSuite

from hybrid_kernels import multiscale_attention, token_fusion
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import token_fusion as samples


class TestTokenFusion(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str):
    return samples.DECLARATION.by_name[name].build(Maker(torch.float32, DEVICE))


def test_it_is_attention_added():
    q, kv, y, scale = arguments("many_tokens")
    key, value = kv.unbind(2)
    expected = y + multiscale_attention(q, [key], [value], scale)
    torch.testing.assert_close(token_fusion(q, kv, y), expected)


def test_one_token_is_added_as_it_is_and_its_key_has_no_gradient():
    q, kv, y, _ = arguments("one_token")
    q.requires_grad_(), kv.requires_grad_()
    z = token_fusion(q, kv, y)
    torch.testing.assert_close(z, y + kv[:, :, 1])
    grad_q, grad_kv = torch.autograd.grad(z.square().sum(), (q, kv))
    assert torch.equal(grad_q, torch.zeros_like(q))
    assert torch.equal(grad_kv[:, :, 0], torch.zeros_like(kv[:, :, 0]))
