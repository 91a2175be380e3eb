"""single_query_attention: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite, backend

from hybrid_kernels import multiscale_attention, single_query_attention
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import single_query_attention as samples


class TestSingleQueryAttention(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str):
    return samples.DECLARATION.by_name[name].build(Maker(torch.float32, DEVICE))


def test_without_exclusion_it_is_plain_attention():
    query, k, v, scale, _ = arguments("class_token")
    expected = multiscale_attention(query, k, v, scale)
    torch.testing.assert_close(single_query_attention(query, k, v, scale), expected)


def test_excluded_tokens_have_no_influence():
    query, k, v, scale, exclude = arguments("one_size")
    out = single_query_attention(query, k, v, scale, exclude)
    for image, indices in enumerate(exclude.tolist()):
        k[image, indices], v[image, indices] = 1e4, -1e4
    assert torch.equal(single_query_attention(query, k, v, scale, exclude), out)


@pytest.mark.skipif(backend() != "cpu", reason="indices of GPU tensors are not looked at")
@pytest.mark.parametrize("index", [-1, 20])
def test_an_index_that_is_no_token_is_refused(index):
    query, k, v, scale, exclude = arguments("one_size")
    exclude[1, 2] = index
    with pytest.raises(RuntimeError, match=f"exclude holds index {index}; expected 0 to 19"):
        single_query_attention(query, k, v, scale, exclude)
