"""partial_combine: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite, backend

from hybrid_kernels import partial_combine
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import partial_combine as samples


class TestPartialCombine(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_replaced_tokens_have_no_influence():
    x, update, foreground, index = arguments("one_size")
    out = partial_combine(x, update, foreground, index)
    for image, tokens in enumerate(index.tolist()):
        assert torch.equal(out[image, tokens], foreground[image])
        x[image, tokens] = float("nan")
    assert torch.equal(partial_combine(x, update, foreground, index), out)


@pytest.mark.parametrize("wide", ["x", "update", "foreground"])
def test_autocast_computes_in_the_widest_dtype(wide):
    x, update, foreground, index = arguments("one_size", torch.bfloat16)
    given = {"x": x, "update": update, "foreground": foreground}
    given[wide] = given[wide].float()
    leaves = [tensor.requires_grad_() for tensor in given.values()]
    with torch.autocast(DEVICE, torch.bfloat16):
        out = partial_combine(*leaves, index)
    assert out.dtype == torch.float32
    assert torch.equal(out, partial_combine(*(leaf.float() for leaf in leaves), index))
    grads = torch.autograd.grad(out.sum(), leaves)
    assert [g.dtype for g in grads] == [leaf.dtype for leaf in leaves]


@pytest.mark.skipif(backend() != "cpu", reason="indices of GPU tensors are not looked at")
@pytest.mark.parametrize(
    ("token", "message"),
    [
        (-1, "index holds index -1; expected 0 to 19"),
        (20, "index holds index 20; expected 0 to 19"),
        (5, "index holds 5 twice for image 1; expected distinct"),
    ],
)
def test_an_index_that_is_no_token_or_not_distinct_is_refused(token, message):
    x, update, foreground, index = arguments("one_size")
    assert index[1, 0] == 5
    index[1, 2] = token
    with pytest.raises(RuntimeError, match=message):
        partial_combine(x, update, foreground, index)
