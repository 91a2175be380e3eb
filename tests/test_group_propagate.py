"""group_propagate: the harness's properties, and what is particular to this op."""

import torch
from harness import DEVICE, OpSuite

from hybrid_kernels import dwconv_act, group_propagate, token_fusion
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import group_propagate as samples


class TestGroupPropagate(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str):
    return samples.DECLARATION.by_name[name].build(Maker(torch.float32, DEVICE))


def test_a_stencil_without_taps_leaves_the_same_for_all_pixels():
    x, w3, b3, w5, b5, kv3, kv5, scale = arguments("one_size")
    y = group_propagate(x, w3 * 0, b3, w5 * 0, b5, kv3, kv5, scale)
    torch.testing.assert_close(y, y[:, :1, :1].expand_as(y))


def test_it_is_token_fusion_of_convolutions():
    x, w3, b3, w5, b5, kv3, kv5, scale = arguments("one_size")
    branch = group_propagate(x, w3, b3, w5, b5, kv3, kv5 * 0, scale)
    query = dwconv_act(x, w3, b3).flatten(1, 2).unflatten(-1, kv3.shape[3:])
    expected = token_fusion(query, kv3, torch.zeros_like(query), scale)
    torch.testing.assert_close(branch, expected.reshape(x.shape))


def test_the_branches_of_equal_stencils_may_be_exchanged():
    x, w3, b3, w5, _, kv3, kv5, scale = arguments("one_size")
    same = torch.zeros_like(w5)
    same[1:4, 1:4] = w3
    y = group_propagate(x, w3, b3, same, b3, kv3, kv5, scale)
    torch.testing.assert_close(y, group_propagate(x, w3, b3, same, b3, kv5, kv3, scale))
