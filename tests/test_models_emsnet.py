"""EMSNet: published counts, the parts of a block, and what a user does with the models."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_checks import (
    RAGGED,
    check_trains,
)
from model_suite import ModelSuite
from torch import Tensor

from python_ref.layers.dynamic_branch import ConvAttention, DynamicBranch, GlobalAttention
from python_ref.layers.static_branch import StaticBranch
from python_ref.models import create_model
from python_ref.models.emsnet import ROWS as ABLATION
from python_ref.models.emsnet import EMSBlock, EMSNetConfig
from python_ref.published import emsnet
from python_ref.published.row import Row

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


class TestEMSNet(ModelSuite):
    whole = "emsnet_xxtiny"
    small = {"widths": (32, 32, 64, 64), "depths": (1, 1, 1, 1)}
    rows = emsnet.ROWS
    options = (
        *({"row": row} for row in ABLATION),
        {"split": (0.5, 0.25, 0.25)},
        {"fuse": False},
        {"channel_splitting": False},
        {"cmhsa_heads": (2, 2, 4, 4)},
        {"cmhsa_scale": 0.5},
        {"whiten_axis": "channel"},
        {"mlp_ratios": (2, 2, 2, 2)},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_sizes = ((64, 96), RAGGED, (33, 2))
    compiled_options = ({"widths": (32, 32), "depths": (1, 1), "mlp_ratios": (2, 2)},)
    refused = [
        ({"windows": 7}, "no option 'windows'; .*cmhsa_heads"),
        ({"widths": (32, 48, 64, 96)}, "multiples of 32"),
        ({"depths": (1, 2)}, "depths must have one entry for each of the 4 stages"),
        ({"row": "+D"}, r"row must be one of baseline, .*\+G, got '\+D'"),
        ({"whiten_axis": "batch"}, "whiten_axis must be one of spatial, channel"),
        ({"pool_mode": "round"}, "pool_mode must be one of ceil, floor"),
        ({"cmhsa_heads": 3}, "heads of C-MHSA must divide its 8 channels, got 3"),
        ({"split": (0.5, 0.5)}, "split must cut 16 channels into 3 parts"),
    ]


small = partial(create_model, "emsnet_xxtiny", **TestEMSNet.small)


# fvcore counts the products of attention weights and values (an einsum) through the report of
# numpy.einsum_path, which has four digits. Windows and channels of XXTiny, by block:
WINDOWS = [(49, 8)] * 2 + [(16, 16)] * 2 + [(4, 32)] * 4 + [(1, 48)] * 2


@pytest.mark.parametrize(("pool_mode", "fvcore"), [("ceil", 545_011_202), ("floor", 544_422_498)])
def test_operations_equal_fvcore_up_to_its_rounding(pool_mode, fvcore):
    row = Row("", "emsnet_xxtiny", {"pool_mode": pool_mode}, convention="fvcore")
    exact = [81 * windows * channels for windows, channels in WINDOWS]
    rounded = [float(f"{2 * products:.3e}") / 2 for products in exact]
    assert row.count().operations + sum(rounded) - sum(exact) == fvcore


@pytest.mark.parametrize(
    ("name", "heads", "parameters", "operations"),
    [("xxtiny", (2, 4, 8, 12), 2.567, 0.516), ("tiny", (4, 6, 8, 16), 5.478, 1.818)],
)
def test_other_reading_has_more_heads_and_no_fusion(name, heads, parameters, operations):
    options = {"fuse": False, "cmhsa_heads": heads}
    figures = Row("", f"emsnet_{name}", options, convention="fvcore").count()
    assert round(figures.parameters / 1e6, 3) == parameters
    assert round(figures.operations / 1e9, 3) == operations


def test_floor_pooling_trains_where_every_patch_is_whole():
    check_trains(partial(small, pool_mode="floor"), 1, (224, 193))


def conv1x1(weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None])


def depthwise(weight: Tensor, x: Tensor, **options: object) -> Tensor:
    kernel = weight.permute(2, 0, 1).unsqueeze(1)
    padding = (weight.shape[0] // 2, weight.shape[1] // 2)
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1], **options)


def spread(tokens: Tensor, kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest upsampling, weighted by the position inside each patch, and cropped."""
    patch = kernel.shape[0]
    whole = F.interpolate(tokens, scale_factor=patch, mode="nearest")
    tiled = kernel.permute(2, 0, 1).repeat(1, *tokens.shape[2:])
    return (whole * tiled)[:, :, : size[0], : size[1]]


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, those that start as ones and zeros too."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_static_branch_is_pooled_convolutions_and_a_gate(size):
    branch = randomised(StaticBranch(16))
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    nchw = x.permute(0, 3, 1, 2)
    u = conv1x1(branch.whiten, nchw)
    parts = depthwise(branch.depthwise, u - u.mean(dim=(2, 3), keepdim=True)).split([4, 8, 4], 1)
    scales = []
    for part, scale, patch in zip(parts[::2], branch.scales, (2, 4), strict=True):
        z = conv1x1(scale.embed, F.max_pool2d(part, patch, ceil_mode=True))
        z = depthwise(scale.vertical[:, None], depthwise(scale.horizontal[None], z))
        scales.append(spread(z, scale.spread, size))
    mixed = conv1x1(branch.mix, torch.cat([scales[0], parts[1], scales[1]], dim=1))
    expected = conv1x1(branch.gate, nchw) * mixed.sigmoid()
    torch.testing.assert_close(branch(x), expected.permute(0, 2, 3, 1), **TOLERANCE)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 3)])
def test_dynamic_branch_attends_locally_and_globally(size):
    local, whole = ConvAttention(16, 2), GlobalAttention(16)
    branch = randomised(DynamicBranch(32, [(local, 4), (whole, 6)]))
    x = torch.randn(2, *size, 32, dtype=torch.float64)
    first, second = x.permute(0, 3, 1, 2).chunk(2, dim=1)

    def averages(part: Tensor, scale: torch.nn.Module) -> Tensor:
        options = {"ceil_mode": True, "count_include_pad": False}
        return conv1x1(scale.embed, F.avg_pool2d(part, scale.patch, **options))

    tokens = averages(first, branch.scales[0])
    slots = F.unfold(conv1x1(local.value.weight, tokens), 3, padding=1, stride=2)
    logits = local.logits(depthwise(local.depthwise, tokens, stride=2).permute(0, 2, 3, 1))
    weights = logits.flatten(1, 2).unflatten(-1, (2, 9, 9)).softmax(dim=-1)
    out = torch.einsum("blhpq,bhdql->bhdpl", weights, slots.unflatten(1, (2, 8, 9)))
    near = F.fold(out.flatten(1, 3), tokens.shape[2:], 3, padding=1, stride=2)

    tokens = averages(second, branch.scales[1])
    q, k, v = whole.qkv(tokens.flatten(2).mT).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    far = whole.project(out).mT.unflatten(2, tokens.shape[2:])

    maps = [spread(t, s.spread, size) for t, s in zip((near, far), branch.scales, strict=True)]
    expected = conv1x1(branch.mix, torch.cat(maps, dim=1)).permute(0, 2, 3, 1)
    torch.testing.assert_close(branch(x), expected, **TOLERANCE)


@pytest.mark.parametrize("fuse", [True, False])
def test_block_halves_its_channels_and_fuses_them(fuse):
    config = EMSNetConfig((64,), fuse=fuse)
    block = randomised(EMSBlock(64, 4, 2, config, 0.0)).eval()
    x = torch.randn(2, 7, 5, 64, dtype=torch.float64)
    mixer = block.mixer
    z = mixer.project_in(block.norm1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    z = torch.cat([mixer.static(z[..., :32]), mixer.dynamic(z[..., 32:])], dim=-1)
    y = x + mixer.project_out(F.gelu(mixer.fuse(z) if fuse else z))
    hidden = block.mlp.expand(block.norm2(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    torch.testing.assert_close(block(x), y + block.mlp.project(F.gelu(hidden)), **TOLERANCE)


@pytest.mark.parametrize(("row", "sees"), [("whiten", False), ("p4", False), ("gated", True)])
def test_only_the_gate_sees_what_an_image_has_everywhere(row, sees):
    torch.manual_seed(0)
    mixer = create_model("emsnet_xxtiny", row=row).stages[0][0].mixer.double()
    x = torch.randn(2, 7, 5, 32, dtype=torch.float64)
    shifted = x + torch.randn(2, 1, 1, 32, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(mixer(shifted), mixer(x), **TOLERANCE) != sees


def test_tokens_start_as_nearest_upsampling():
    torch.manual_seed(0)
    branch = create_model("emsnet_xxtiny").stages[2][0].mixer
    for scale in (*branch.static.scales, *branch.dynamic.scales):
        assert torch.equal(scale.spread, torch.ones_like(scale.spread))
    assert abs(branch.fuse.weight.std() - 0.02) < 0.002
    assert abs(branch.static.depthwise.std() - (2 / 9) ** 0.5) < 0.06
    assert not branch.dynamic.scales[0].mixer.logits.bias.any()


def test_drop_path_rises_linearly_to_the_last_block():
    model = create_model("emsnet_xxtiny", drop_path=0.9)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    torch.testing.assert_close(rates, [0.1 * depth for depth in range(10)])
