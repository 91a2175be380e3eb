"""Swin and MRL-Swin: published counts, shifted windows by rolling, and what a user does."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_checks import (
    RAGGED,
)
from model_suite import ModelSuite
from reference_checks import TOLERANCE, random
from torch import Tensor, nn

from python_ref.layers import MRLMixer, WindowAttention
from python_ref.models import create_model
from python_ref.published import swin


class TestSwin(ModelSuite):
    whole = "swin_t"
    names = ("swin_t", "mrl_swin_t")
    small = {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32), "head_dim": 8}
    rows = swin.ROWS
    options = (
        {"window": 4},
        {"mixer": "mrl", "regions": (4, 4, 2, 2)},
        {"mixer": "mrl", "regional_linear": False},
        {"stage_norms": False},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_sizes = ((64, 96), RAGGED, (45, 2))
    refused = [
        ({"mixer": "shifted"}, "mixer must be one of window, mrl"),
        ({"widths": (8, 16, 24)}, "widths must have one entry for each of the 4 stages"),
        ({"head_dim": 5}, "head_dim must divide"),
        ({"window": 0}, "window must be at least 1"),
        ({"mixer": "mrl", "regions": (8, 4, 2, 0)}, "region must be at least 1, got 0"),
        ({"gc": "append"}, "no option 'gc'"),
    ]


small = partial(create_model, "swin_t", **TestSwin.small)


def windows_of(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, P * P, C), for sizes that tile."""
    rows = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return rows.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def regions_of(height: int, width: int, window: int, shifts: list[int]) -> Tensor:
    """Number of the part of the rolled map that every pixel comes from, as Swin masks them."""
    numbers = torch.zeros(height, width, dtype=torch.int64)
    for length, shift, weight in ((height, shifts[0], 3), (width, shifts[1], 1)):
        part = torch.zeros(length, dtype=torch.int64)
        if shift:
            part[-window:-shift], part[-shift:] = 1, 2
        numbers += weight * (part[:, None] if weight == 3 else part)
    return numbers


def rolled_attention(layer: WindowAttention, x: Tensor) -> Tensor:
    """The original: pad, roll, attend inside windows under a mask, roll back, crop."""
    height, width = x.shape[1:3]
    side, heads = layer.window, layer.heads
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    padded = x.shape[1:3]
    shifts = [layer.shift if length > side else 0 for length in padded]
    x = x.roll([-shift for shift in shifts], (1, 2))
    q, k, v = layer.qkv(windows_of(x, side)).unflatten(-1, (3, heads, -1)).unbind(3)
    scores = torch.einsum("bwshc,bwthc->bwhst", q, k) * layer.scale
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    offsets = layer.bias[0].unflatten(0, (2 * side - 1, 2 * side - 1))
    scores = scores + offsets[
        row[:, None] - row[None, :] + side - 1, column[:, None] - column[None, :] + side - 1
    ].permute(2, 0, 1)
    region = windows_of(regions_of(*padded, side, shifts)[None, :, :, None], side)[0, :, :, 0]
    apart = region[:, :, None] != region[:, None, :]
    scores = scores.masked_fill(apart[None, :, None], -torch.inf)
    out = torch.einsum("bwhst,bwthc->bwshc", scores.softmax(dim=-1), v).flatten(-2)
    counts = (padded[0] // side, padded[1] // side)
    out = out.unflatten(2, (side, side)).unflatten(1, counts).transpose(2, 3)
    out = out.flatten(3, 4).flatten(1, 2).roll(shifts, (1, 2))
    return layer.project(out[:, :height, :width])


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("size", [(14, 21), (7, 7), (15, 8), (3, 20), (5, 2), (1, 1)])
def test_windows_equal_the_rolled_and_masked_original(size, shift):
    torch.manual_seed(size[0] * 10 + shift)
    layer = WindowAttention(12, 3, 7, shift).double()
    nn.init.normal_(layer.bias)
    x = random(2, *size, 12, grad=True)
    ours, others = layer(x), rolled_attention(layer, x)
    torch.testing.assert_close(ours, others, **TOLERANCE)
    grad, inputs = torch.randn_like(ours), [x, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, grad),
        torch.autograd.grad(others, inputs, grad),
        **TOLERANCE,
    )


def test_every_second_block_shifts_its_windows_by_half_of_one():
    model = create_model("swin_t", depths=(2, 2, 3, 2))
    shifts = [[block.mixer.shift for block in list(stage)[1:]] for stage in model.stages]
    assert shifts == [[0, 3], [0, 3], [0, 3, 0], [0, 3]]


@pytest.mark.parametrize(("linear", "matrices"), [(True, 5), (False, 4)])
def test_mixers_of_mrl_swin(linear, matrices):
    """Regions of 8, 4, 2 and 1 pixels leave 7 x 7 tokens in every stage at 224."""
    model = create_model("mrl_swin_t", depths=(1, 1, 1, 1), regional_linear=linear)
    for stage, region, dim in zip(model.stages, (8, 4, 2, 1), (96, 192, 384, 768), strict=True):
        mixer = stage[1].mixer
        assert isinstance(mixer, MRLMixer)
        assert mixer.attention.scale == 32**-0.5
        assert mixer.samplers[0].depthwise.conv.weight.shape == (dim, 1, region, region)
        assert sum(isinstance(m, nn.Linear) for m in mixer.modules()) == matrices


def test_returned_maps_are_normalised_unless_told_otherwise():
    x = torch.randn(1, 3, 64, 64)
    model = small(features_only=True, out_indices=(1, 3)).eval()
    assert list(model.norms) == ["1", "3"]
    raw = small(features_only=True, out_indices=(1, 3), stage_norms=False).eval()
    raw.load_state_dict(model.state_dict(), strict=False)
    assert not raw.norms
    with torch.no_grad():
        for normed, plain in zip(model(x), raw(x), strict=True):
            expected = F.layer_norm(plain.permute(0, 2, 3, 1), plain.shape[1:2])
            torch.testing.assert_close(normed.permute(0, 2, 3, 1), expected)


def test_images_are_filled_up_to_whole_patches():
    torch.manual_seed(0)
    model = small().eval()
    x = torch.randn(1, 3, 61, 35)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(F.pad(x, (0, 1, 0, 3))))


def test_drop_path_rises_linearly_to_the_last_block():
    model = small(drop_path=0.4)
    rates = [block.drop_path.rate for stage in model.stages for block in list(stage)[1:]]
    torch.testing.assert_close(rates, [0.0, 0.1, 0.2, 0.3, 0.4])
