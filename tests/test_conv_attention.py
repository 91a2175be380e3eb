"""conv_attention: the harness's properties, and what is particular to this op."""

import torch
from harness import DEVICE, OpSuite

from hybrid_kernels import conv_attention
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import conv_attention as samples


class TestConvAttention(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str):
    return samples.DECLARATION.by_name[name].build(Maker(torch.float32, DEVICE))


def test_slots_outside_keep_their_share_of_the_softmax():
    v, logits, *rest = arguments("one_pixel")
    share = logits.softmax(dim=-1)[:, 0, 0, :, 4, 4].repeat_interleave(4, dim=1)
    torch.testing.assert_close(conv_attention(v, logits, *rest)[:, 0, 0], share * v[:, 0, 0])


def test_pixels_that_no_window_covers_are_zero_and_have_no_gradient():
    v, logits, *rest = arguments("gaps")
    v.requires_grad_()
    y = conv_attention(v, logits, *rest)
    (grad,) = torch.autograd.grad(y.square().sum(), v)
    for t in (y, grad):
        assert not t[:, 2::4].any() and not t[:, :, 2::4].any()
        assert t[:, ::4, ::4].all()


def test_an_infinite_logit_takes_all_of_its_row():
    """Weights without mass elsewhere: every output slot is the centre of its window."""
    v, logits, *rest = arguments("volo_stride_1")
    logits = torch.full_like(logits, float("-inf"))
    logits[..., 4] = 0.0
    counts = conv_attention(torch.ones_like(v), logits, *rest)
    assert torch.equal(counts[0, 1, 1], torch.full_like(counts[0, 1, 1], 9.0))
