"""single_query_attention, projected and absorbed: the harness's properties, and what is special."""

import pytest
import torch
from harness import DEVICE, OpSuite, backend

from hybrid_kernels import (
    multiscale_attention,
    single_query_attention,
    single_query_attention_absorbed,
    single_query_form,
)
from hybrid_kernels.samples import Maker, single_query_pool
from hybrid_kernels.samples import single_query_attention as samples
from python_ref.ops import single_query_attention_absorbed_out


class TestSingleQueryAttention(OpSuite):
    declaration = samples.DECLARATION


class TestSingleQueryPool(OpSuite):
    declaration = single_query_pool.DECLARATION


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


# queries, heads, channels, d, dv: one call of the kernel, two, too many channels for it; projected
ABSORBED = ((2, 3, 12, 4, 5), (6, 3, 12, 4, 4), (1, 2, 130, 4, 4))
PROJECTED = (8, 2, 4, 2, 2)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sizes", [*ABSORBED, PROJECTED])
def test_absorbed_form_equals_the_reference_on_every_path(sizes, shared, has_bias):
    queries, heads, channels, d, dv = sizes
    form = single_query_form(queries, heads, channels, d, dv)
    assert form.is_absorbed == (sizes in ABSORBED)
    assert form.is_kernel == (sizes != ABSORBED[2])
    assert single_query_form(*sizes, torch.bfloat16).is_kernel == (sizes not in ABSORBED[1:])
    make = Maker(torch.float32, DEVICE)
    inputs = [
        make.data(queries, heads, d) if shared else make.data(2, queries, heads, d),
        make.data(2, 21, channels),
        make.data(heads * d, channels) / channels**0.5,
        make.data(heads * dv, channels) / channels**0.5,
    ]
    inputs += [make.data(heads * dv)] if has_bias else []
    exclude = torch.tensor([[3, 20], [0, 7]], device=DEVICE)
    results = []
    for attend in (single_query_attention_absorbed, single_query_attention_absorbed_out):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = attend(*leaves[:4], leaves[4] if has_bias else None, 0.4, exclude)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_absorbed_form_names_a_projection_that_does_not_fit():
    query, x, weight = torch.zeros(1, 2, 4), torch.zeros(1, 5, 8), torch.zeros(8, 8)
    for name, wrong in (
        ("key_weight", (weight[1:], weight, None)),
        ("value_weight", (weight, weight[1:], None)),
        ("value_bias", (weight, weight, torch.zeros(9))),
    ):
        with pytest.raises(ValueError, match=f"single_query_attention_absorbed: {name} has shape"):
            single_query_attention_absorbed(query, x, *wrong)
