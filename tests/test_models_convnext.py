"""ConvNeXt: published counts, its block by hand, and what a user does."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_checks import (
    RAGGED,
)
from model_suite import ModelSuite

from python_ref.models import create_model
from python_ref.models.convnext import ConvNeXtBlock
from python_ref.published import mscsa_baselines

ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("convnext")]


class TestConvNeXt(ModelSuite):
    whole = "convnext_t"
    small = {"depths": (1, 1, 2, 1), "widths": (16, 24, 32, 48)}
    rows = ROWS
    options = ({"layer_scale": 1.0}, {"drop_path": 0.5}, {"in_chans": 1})
    features_sizes = ((64, 96),)  # whole patches
    refused = [({"layers": (1, 1, 1, 1)}, "no option 'layers'; .*depths, layer_scale")]


small = partial(create_model, "convnext_t", **TestConvNeXt.small)


@pytest.mark.parametrize("size", [RAGGED, (45, 2)])
def test_pixels_beyond_the_last_whole_patch_are_dropped(size):
    model = small(features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size))
    expected = [tuple(max(1, side // stride) for side in size) for stride in (4, 8, 16, 32)]
    assert [tuple(m.shape[2:]) for m in maps] == expected


def test_returned_maps_are_normalised_and_no_other():
    """A dense head sees normalised maps; a norm of a map that nobody sees would not train."""
    model = small(features_only=True, out_indices=(1, 3)).eval()
    assert list(model.norms) == ["1", "3"]
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 64))
    for x in maps:
        torch.testing.assert_close(x.mean(dim=1), torch.zeros(1, *x.shape[2:]), atol=1e-5, rtol=0)


def test_block_is_a_scaled_residual_of_a_large_stencil_and_two_linear_layers():
    torch.manual_seed(0)
    block = ConvNeXtBlock(6, 0.5, 0.0).double()
    x = torch.randn(2, 5, 9, 6, dtype=torch.float64)
    taps = F.pad(x, (0, 0, 3, 3, 3, 3)).unfold(1, 7, 1).unfold(2, 7, 1)
    y = torch.einsum("bhwcij,cij->bhwc", taps, block.depthwise.weight[:, 0]) + block.depthwise.bias
    y = F.layer_norm(y, (6,), eps=1e-6)
    y = block.mlp.project(F.gelu(block.mlp.expand(y)))
    torch.testing.assert_close(block(x), x + 0.5 * y, rtol=1e-12, atol=1e-12)
