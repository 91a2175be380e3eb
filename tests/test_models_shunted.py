"""Shunted Transformer: published counts, its two kinds of attention, and what a user does."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_checks import (
    RAGGED,
)
from model_suite import ModelSuite
from torch import Tensor

from python_ref.models import create_model
from python_ref.models.shunted import EnhancedAttention, ShuntedAttention
from python_ref.published import mscsa_baselines

ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("shunted")]


class TestShunted(ModelSuite):
    whole = "shunted_t"
    small = {"depths": (1, 1, 2, 1), "widths": (16, 32, 64, 96)}
    rows = ROWS
    options = (
        {"heads": (2, 2, 4, 4)},
        {"mlp_ratios": (2, 2, 2, 2)},
        {"reductions": (4, 2, 1, 1)},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_sizes = ((64, 96), (75, 100), (2, 2))
    refused = [
        ({"windows": 7}, "no option 'windows'; .*reductions"),
        ({"heads": (1, 4, 8, 16)}, r"be even, .* got heads \(1, 4, 8, 16\)"),
        ({"heads": (2, 4)}, "heads must have one entry for each of the 4 stages"),
        ({"reductions": (8, 4, 3, 1)}, r"reductions \(8, 4, 3, 1\)"),
    ]


small = partial(create_model, "shunted_t", **TestShunted.small)


def test_stem_drops_what_is_left_beside_whole_patches():
    model = small(features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *RAGGED))  # 38 x 51 after the first convolution
    assert [tuple(m.shape[-2:]) for m in maps] == [(19, 25), (10, 13), (5, 7), (3, 4)]


def heads(x: Tensor, number: int) -> Tensor:
    """(B, H, W, C) -> (B, h, H * W, d)."""
    return x.flatten(1, 2).unflatten(-1, (number, -1)).transpose(1, 2)


def depthwise(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_halves_of_the_heads_see_patches_of_two_sizes(size):
    torch.manual_seed(0)
    attention = ShuntedAttention(16, 4, 4).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    query = heads(attention.query(x), 4)
    outs = []
    for first, group, side in ((0, attention.groups[0], 4), (2, attention.groups[1], 2)):
        whole = x[:, : size[0] // side * side, : size[1] // side * side]  # whole patches only
        patches = whole.unflatten(1, (-1, side)).unflatten(3, (-1, side))
        weight = group.reduce.conv.weight
        tokens = torch.einsum("bhiwjc,dcij->bhwd", patches, weight) + group.reduce.conv.bias
        tokens = F.gelu(group.reduce.norm(tokens))
        key, value = group.key_value(tokens).chunk(2, dim=-1)
        value = value + depthwise(group.enhance.depthwise, value)
        outs.append(
            F.scaled_dot_product_attention(
                query[:, first : first + 2], heads(key, 2), heads(value, 2)
            )
        )
    expected = attention.project(torch.cat(outs, dim=1).transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)


def test_last_stage_adds_convolved_values_to_plain_attention():
    torch.manual_seed(0)
    attention = EnhancedAttention(16, 4).double()
    x = torch.randn(2, 5, 3, 16, dtype=torch.float64)
    key, value = attention.key_value(x).chunk(2, dim=-1)
    out = F.scaled_dot_product_attention(*(heads(t, 4) for t in (attention.query(x), key, value)))
    expected = out.transpose(1, 2).reshape(x.shape) + depthwise(attention.enhance, value)
    torch.testing.assert_close(attention(x), attention.project(expected), rtol=1e-12, atol=1e-12)
