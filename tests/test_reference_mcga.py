"""MCGA's propagation of pooled tokens against other ways to write it, in float64."""

import pytest
import torch
import torch.nn.functional as F
from reference_checks import TOLERANCE, check_equal, gradients, random
from torch import Tensor

from python_ref.ops import group_propagate, group_propagate_backward

SCALE = 0.7
# Images, height, width, groups, heads, head width.
CASES = [(2, 5, 7, 8, 2, 3), (1, 1, 1, 4, 1, 2), (2, 2, 3, 1, 3, 2), (0, 3, 3, 4, 2, 2)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def sample(case) -> tuple[Tensor, ...]:
    batch, height, width, groups, heads, head_dim = case
    torch.manual_seed(height * 10 + width)
    channels = heads * head_dim
    x = random(batch, height, width, channels, grad=True)
    convs = [random(*s, channels, grad=True) for s in ((3, 3), (), (5, 5), ())]
    kvs = [random(batch, groups, 2, heads, head_dim, grad=True) for _ in range(2)]
    return x, *convs, *kvs


def propagate_with_the_framework(x, w3, b3, w5, b5, kv3, kv5):
    """Depthwise conv2d in NCHW, heads split from channels, scaled_dot_product_attention, summed."""
    total = 0
    for weight, bias, kv in ((w3, b3, kv3), (w5, b5, kv5)):
        kernel = weight.permute(2, 0, 1).unsqueeze(1)
        queries = F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding="same", groups=x.shape[3])
        queries = queries.unflatten(1, kv.shape[3:]).flatten(3).transpose(2, 3)
        key, value = kv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(queries, key, value, scale=SCALE)
        total = total + out.permute(0, 2, 1, 3).reshape(x.shape)
    return total


@every_case
def test_propagation_equals_the_framework(case):
    check_equal(
        lambda *inputs: group_propagate(*inputs, SCALE), propagate_with_the_framework, sample(case)
    )


@every_case
def test_backward_formulas_equal_autograd(case):
    inputs = sample(case)
    out = group_propagate(*inputs, SCALE)
    grad = torch.randn_like(out)
    with torch.no_grad():
        found = group_propagate_backward(grad, *inputs, SCALE, True, True, True)
    torch.testing.assert_close(list(found), gradients(out, inputs, [grad]), **TOLERANCE)


@pytest.mark.parametrize(("wanted", "owned"), [(0, (0,)), (1, (1, 2, 3, 4)), (2, (5, 6))])
def test_backward_returns_nothing_for_what_is_not_needed(wanted, owned):
    inputs = sample(CASES[0])
    with torch.no_grad():
        grads = group_propagate_backward(
            inputs[0], *inputs, SCALE, *(i == wanted for i in range(3))
        )
    assert [g.shape for g in grads] == [inputs[i].shape if i in owned else (0,) for i in range(7)]


def test_equal_tokens_are_read_unchanged_by_every_pixel():
    x, *convs, kv3, kv5 = sample(CASES[0])
    kv3, kv5 = (kv[:, :1].expand(-1, 8, -1, -1, -1) for kv in (kv3, kv5))
    values = (kv3 + kv5)[:, 0, 1].flatten(1)[:, None, None, :]
    out = group_propagate(x, *convs, kv3, kv5, SCALE)
    torch.testing.assert_close(out, values.expand_as(out), **TOLERANCE)


def test_gradcheck():
    inputs = sample((1, 2, 3, 2, 1, 2))
    assert torch.autograd.gradcheck(lambda *tensors: group_propagate(*tensors, SCALE), inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 4, 6)}, "x must be"),
        ({"x": torch.zeros(2, 0, 4, 6)}, "at least one pixel"),
        ({"w3": torch.zeros(5, 5, 6)}, r"w3 must be .*\(3, 3, 6\)"),
        ({"w5": torch.zeros(5, 5, 3)}, r"w5 must be .*\(5, 5, 6\)"),
        ({"b5": torch.zeros(5)}, r"b5 must be \(C,\) = \(6,\)"),
        ({"kv3": torch.zeros(2, 8, 2, 2, 4)}, "kv3 must be"),
        ({"kv5": torch.zeros(2, 4, 2, 2, 3)}, "kv5 must be"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {
        "x": torch.zeros(2, 4, 5, 6),
        "w3": torch.zeros(3, 3, 6),
        "b3": torch.zeros(6),
        "w5": torch.zeros(5, 5, 6),
        "b5": torch.zeros(6),
        "kv3": torch.zeros(2, 8, 2, 2, 3),
        "kv5": torch.zeros(2, 8, 2, 2, 3),
    }
    arguments |= changes
    if "kv3" in changes:
        arguments["kv5"] = arguments["kv3"]
    with pytest.raises(ValueError, match=message):
        group_propagate(**arguments, scale=1.0)
