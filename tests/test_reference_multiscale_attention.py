"""Attention over several segments of keys against attention spelled out query by query."""

import itertools

import pytest
import torch
from reference_checks import TOLERANCE, check_equal, gradients, random
from torch import Tensor

from python_ref.ops import (
    multiscale_attention,
    multiscale_attention_backward,
    multiscale_attention_out,
)

# Queries, keys of every segment, heads, width, value width.
CASES = [
    (49, (49, 16, 9), 2, 3, 6),  # the three scales of a 7 x 7 map
    (5, (1, 7), 3, 4, 4),
    (10, (6,), 1, 2, 5),  # one segment: plain attention
    (1, (1, 1, 1), 2, 3, 2),  # the three scales of one pixel
    (4, (3, 0), 2, 2, 2),  # an empty segment adds nothing
    (0, (4, 2), 1, 3, 3),
]
all_cases = pytest.mark.parametrize(("tokens", "segments", "heads", "width", "value_width"), CASES)
SCALE = 0.6


def sample(tokens, segments, heads, width, value_width) -> list[Tensor]:
    """q, then all keys, then all values."""
    torch.manual_seed(tokens)
    q = random(2, tokens, heads, width, grad=True)
    ks = [random(2, keys, heads, width, grad=True) for keys in segments]
    vs = [random(2, keys, heads, value_width, grad=True) for keys in segments]
    return [q, *ks, *vs]


def split(inputs: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    q, *rest = inputs
    half = len(rest) // 2
    return q, rest[:half], rest[half:]


def attend(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    q, ks, vs = split(inputs)
    return multiscale_attention(q, ks, vs, SCALE)


def attend_by_segment(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Numerators and denominators of the softmax summed segment by segment, without a softmax."""
    q, ks, vs = split(inputs)
    numerator, denominator = 0.0, 0.0
    for k, v in zip(ks, vs, strict=True):
        weights = torch.exp(SCALE * torch.einsum("bnhc,bmhc->bhnm", q, k))
        numerator = numerator + torch.einsum("bhnm,bmhc->bnhc", weights, v)
        denominator = denominator + weights.sum(dim=-1)
    return numerator / denominator.transpose(1, 2).unsqueeze(-1), denominator.log()


@all_cases
def test_one_softmax_runs_over_all_segments(tokens, segments, heads, width, value_width):
    inputs = sample(tokens, segments, heads, width, value_width)
    check_equal(attend, attend_by_segment, inputs)


@all_cases
def test_backward_formulas_equal_autograd(tokens, segments, heads, width, value_width):
    inputs = sample(tokens, segments, heads, width, value_width)
    q, ks, vs = split(inputs)
    out, lse = multiscale_attention(q, ks, vs, SCALE)
    grad = torch.randn_like(out)
    needs = (True, [True] * len(ks), [True] * len(vs))
    with torch.no_grad():
        grad_q, grad_ks, grad_vs = multiscale_attention_backward(
            grad, q, ks, vs, out, lse, SCALE, *needs
        )
    torch.testing.assert_close(
        [grad_q, *grad_ks, *grad_vs], gradients(out, inputs, [grad]), **TOLERANCE
    )


@pytest.mark.parametrize("needed", range(5))
def test_backward_returns_nothing_for_what_is_not_needed(needed):
    inputs = sample(4, (3, 2), 1, 2, 3)
    q, ks, vs = split(inputs)
    needs = [index == needed for index in range(5)]
    with torch.no_grad():
        out, lse = multiscale_attention(q, ks, vs, SCALE)
        grad_q, grad_ks, grad_vs = multiscale_attention_backward(
            out, q, ks, vs, out, lse, SCALE, needs[0], needs[1:3], needs[3:]
        )
    shapes = [g.shape for g in (grad_q, *grad_ks, *grad_vs)]
    expected = [t.shape if need else (0,) for t, need in zip(inputs, needs, strict=True)]
    assert shapes == expected


def test_order_and_cut_of_the_segments_do_not_matter():
    q, ks, vs = split(sample(5, (4, 3, 2), 2, 3, 3))
    expected = multiscale_attention(q, [torch.cat(ks, 1)], [torch.cat(vs, 1)], SCALE)
    for order in itertools.permutations(range(3)):
        found = multiscale_attention(q, [ks[i] for i in order], [vs[i] for i in order], SCALE)
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_the_output_alone_equals_the_pair():
    q, ks, vs = split(sample(5, (4, 3), 2, 3, 4))
    assert torch.equal(
        multiscale_attention_out(q, ks, vs, SCALE), multiscale_attention(q, ks, vs, SCALE)[0]
    )


def test_strides_do_not_matter():
    """Channel-major memory, as convolutions leave it, and packed queries, keys and values."""
    q, ks, vs = split(sample(6, (6, 2), 2, 4, 4))
    packed = torch.stack([q, ks[0], vs[0]], dim=2).unbind(dim=2)
    channel_major = [
        t.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unflatten(2, (2, 4))
        for t in (ks[1], vs[1])
    ]
    found = multiscale_attention(
        packed[0], [packed[1], channel_major[0]], [packed[2], channel_major[1]], SCALE
    )
    torch.testing.assert_close(found, multiscale_attention(q, ks, vs, SCALE), **TOLERANCE)


def test_a_single_key_returns_its_value():
    q, ks, vs = split(sample(3, (1,), 2, 3, 4))
    out = multiscale_attention_out(q, ks, vs, SCALE)
    assert torch.equal(out, vs[0].expand_as(out))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_stay_in_float32(dtype):
    q, *rest = (t.detach().to(dtype) for t in sample(5, (3, 2), 1, 4, 4))
    out, lse = multiscale_attention(q, rest[:2], rest[2:], SCALE)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (([2, 3, 4], [], []), "q must be"),
        (([1, 2, 3, 4], [], []), "at least one"),
        (([1, 2, 3, 4], [[1, 5, 3, 4]], []), "same number"),
        (([1, 2, 3, 4], [[1, 5, 3, 5]], [[1, 5, 3, 4]]), r"ks\[0\] must be .*\(1, 5, 3, 4\)"),
        (([1, 2, 3, 4], [[1, 5, 3, 4]], [[1, 6, 3, 4]]), r"vs\[0\] must be .*\(1, 5, 3, 4\)"),
        (([1, 2, 3, 4], [[1, 5, 3, 4]] * 2, [[1, 5, 3, 6], [1, 5, 3, 4]]), r"vs\[1\] must be"),
        (([1, 2, 3, 4], [[2, 5, 3, 4]], [[1, 5, 3, 4]]), r"ks\[0\] must be"),
    ],
)
def test_bad_arguments_are_named(shapes, message):
    q, ks, vs = shapes
    with pytest.raises(ValueError, match=message):
        multiscale_attention(random(*q), [random(*k) for k in ks], [random(*v) for v in vs], 1.0)
