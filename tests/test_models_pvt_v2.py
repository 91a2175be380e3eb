"""PVTv2: published counts, spatial-reduction attention by hand, and what a user does."""

import pytest
import torch
import torch.nn.functional as F
from model_suite import ModelSuite
from torch import Tensor

from python_ref.models.pvt_v2 import SpatialReductionAttention
from python_ref.published import mscsa_baselines

ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("pvt")]


class TestPVTv2(ModelSuite):
    whole = "pvt_v2_b0"
    small = {"depths": (1, 1, 2, 1), "widths": (16, 32, 40, 64)}
    rows = ROWS
    options = (
        {"heads": (2, 2, 4, 4)},
        {"mlp_ratios": (2, 2, 2, 2)},
        {"reductions": (4, 2, 1, 1)},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    refused = [
        ({"windows": 7}, "no option 'windows'; .*reductions"),
        ({"heads": (1, 2, 5, 7)}, "heads must divide dim = 256, got 7"),
    ]


def heads(x: Tensor, number: int) -> Tensor:
    """(B, H, W, C) -> (B, h, H * W, d)."""
    return x.flatten(1, 2).unflatten(-1, (number, -1)).transpose(1, 2)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize("side", [1, 3])
def test_pixels_attend_to_the_whole_patches_of_the_map(size, side):
    torch.manual_seed(0)
    attention = SpatialReductionAttention(16, 4, side).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    tokens = x
    if side > 1:
        whole = x[:, : size[0] // side * side, : size[1] // side * side]
        patches = whole.unflatten(1, (-1, side)).unflatten(3, (-1, side))
        conv = attention.reduce.conv
        tokens = torch.einsum("bhiwjc,dcij->bhwd", patches, conv.weight) + conv.bias
        tokens = F.layer_norm(tokens, (16,), eps=1e-5)
    key, value = attention.key_value(tokens).chunk(2, dim=-1)
    out = F.scaled_dot_product_attention(*(heads(t, 4) for t in (attention.query(x), key, value)))
    expected = attention.project(out.transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)
