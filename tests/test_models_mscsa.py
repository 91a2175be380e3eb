"""MSCSA: published counts, the module by hand, and what a user does with the models."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_suite import ModelSuite
from torch import Tensor, nn

from python_ref.layers.mscsa import (
    MSCSA,
    ConvFeedForward,
    CrossScaleAttention,
    GroupedPointwise,
)
from python_ref.models import create_model, list_models
from python_ref.published import mscsa

TOLERANCE = {"atol": 1e-12, "rtol": 1e-10}
NAMES = list_models("*_mscsa")


class TestMSCSA(ModelSuite):
    whole = "pvt_v2_b0_mscsa"
    small = {
        "backbone": {"depths": (1, 1, 1, 1), "widths": (8, 16, 40, 32)},
        "heads": 2,
        "head_dim": 3,
    }
    rows = mscsa.ROWS
    options = (
        {"msp": "avgpool"},
        {"msp": "cascade"},
        {"msp": "single"},
        {"msp": "none"},
        {"pcp": False},
        {"intra": False},
        {"head": "concat"},
        {"squeeze": 1},
        {"depth": 2},
        {"ratio": 1.5},
        {"grid": 16},
        {"grid": 16, "enlarge": "bilinear"},
        {"grid": 64},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_options = ({}, {"dense_grid": 64}, {"inject_width": 24})
    refused = [
        ({"dim": 7}, "no option 'dim'; .*squeeze, depth"),
        ({"head": "both"}, "head must be one of mscsa, concat, got 'both'"),
        ({"grid": 8}, r"grid must be one of \(16, 32, 64\), got 8"),
        ({"dense_grid": 0}, "dense_grid must be one of"),
        ({"msp": "serial"}, "msp must be one of parallel, .*got 'serial'"),
        ({"squeeze": 2}, r"squeeze must be in \(0, 1\], got 2"),
        ({"enlarge": "nearest"}, "enlarge must be one of pool, bilinear"),
        ({"backbone": {"windows": 7}}, "pvt_v2_b0 has no option 'windows'"),
    ]


small = partial(create_model, "pvt_v2_b0_mscsa", **TestMSCSA.small)


def test_fused_maps_train_everything_but_the_parts_of_other_stages():
    torch.manual_seed(0)
    model = small(features_only=True, out_indices=(1, 3))
    sum(y.square().sum() for y in model(torch.randn(2, 3, 64, 80))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert list(model.injections) == ["1", "3"]


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_gives_logits_and_fused_maps(name):
    with torch.device("meta"):
        image = torch.empty(2, 3, 160, 96)
        assert create_model(name, num_classes=7)(image).shape == (2, 7)
        model = create_model(name, features_only=True, out_indices=(1, 2, 3))
        shapes = [tuple(y.shape) for y in model(image)]
    expected = [
        (2, info.channels, 160 // info.stride, 96 // info.stride) for info in model.feature_info
    ]
    assert shapes == expected


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("resnet50_mscsa", [64, 128, 256, 512]),
        ("pvt_v2_b2_mscsa", [64, 128, 320, 512]),
        ("coat_small_mscsa", [152, 320, 320, 320]),
        ("topformer_b_mscsa", [256, 256, 256, 256]),
    ],
)
def test_fused_maps_have_the_squeezed_widths(name, widths):
    with torch.device("meta"):
        model = create_model(name, features_only=True)
    assert [info.channels for info in model.feature_info] == widths
    convolved = [isinstance(layer.local, nn.Identity) for layer in model.injections.values()]
    assert convolved == [name.startswith(("pvt", "coat"))] * 4


@pytest.mark.parametrize(("name", "parts"), [("coat_tiny", "parallel"), ("topformer_t", "blocks")])
def test_what_is_replaced_is_gone(name, parts):
    with torch.device("meta"):
        model = create_model(f"{name}_mscsa")
        plain = create_model(name)
    assert any(parts in key for key in plain.state_dict())
    inner = model.backbone.state_dict()
    assert not any(key.startswith((parts, f"extractor.{parts}", "head")) for key in inner)


def randomised(module: nn.Module) -> nn.Module:
    """In float64 with norms that do something, in eval mode."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for t in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(t)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return module.double().eval()


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def cross_scale_attention_by_hand(layer: CrossScaleAttention, x: Tensor, scales) -> Tensor:
    """Eqs. 1-9 head by head on NCHW, queries, keys and values projected one by one."""
    x = layer.norm(nchw(x))
    maps = [x, *scales(layer, x)]
    head_dim = layer.widths[0][0] // layer.heads
    keys, values = [], []
    for projection, y in zip(layer.projections, maps, strict=True):
        inner = layer.heads * head_dim
        z = projection.norm(F.conv2d(y, projection.conv.weight))
        keys.append(z[:, -3 * inner : -2 * inner].flatten(2))
        values.append(z[:, -2 * inner :])
    projection = layer.projections[0]
    query = projection.norm(F.conv2d(x, projection.conv.weight)).flatten(2)
    key = torch.cat(keys, dim=2)
    value = torch.cat([v.flatten(2) for v in values], dim=2)
    heads = []
    for head in range(layer.heads):
        q = query[:, head * head_dim : (head + 1) * head_dim]
        k = key[:, head * head_dim : (head + 1) * head_dim]
        v = value[:, 2 * head * head_dim : 2 * (head + 1) * head_dim]
        weights = (head_dim**-0.5 * torch.einsum("bcn,bcm->bnm", q, k)).softmax(dim=2)
        heads.append(torch.einsum("bnm,bcm->bcn", weights, v))
    out = torch.cat(heads, dim=1).unflatten(2, x.shape[2:])
    out = out + layer.value_conv(F.hardswish(values[0]))
    return layer.project(F.hardswish(layer.norm_out(out))).permute(0, 2, 3, 1)


def parallel(layer, x):
    return [conv.norm(conv.conv(x)) for conv in layer.scales.convs]


def cascade(layer, x):
    first, second = layer.scales.convs
    once = first.norm(first.conv(x))
    return [once, second.norm(second.conv(once))]


def averages(layer, x):
    """Sums over windows divided by the number of pixels inside the map."""
    maps = []
    for side, stride in ((3, 2), (5, 3)):
        pool = partial(F.avg_pool2d, kernel_size=side, stride=stride, padding=side // 2)
        maps.append(pool(x) / pool(torch.ones_like(x)))
    return maps


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (5, 8)])
@pytest.mark.parametrize(
    ("msp", "scales"),
    [
        ("parallel", parallel),
        ("cascade", cascade),
        ("avgpool", averages),
        ("single", lambda layer, x: parallel(layer, x)[:1]),
        ("none", lambda layer, x: []),
    ],
)
def test_attention_equals_the_equations(size, msp, scales):
    layer = randomised(CrossScaleAttention(10, 3, 4, msp))
    x = torch.randn(2, *size, 10, dtype=torch.float64)
    expected = cross_scale_attention_by_hand(layer, x, scales)
    torch.testing.assert_close(layer(x), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("msp", "sizes"),
    [
        ("parallel", [(4, 4), (3, 3)]),
        ("avgpool", [(4, 4), (3, 3)]),
        ("cascade", [(4, 4), (2, 2)]),
        ("single", [(4, 4)]),
        ("none", []),
    ],
)
def test_sizes_of_the_scales(msp, sizes):
    scales = CrossScaleAttention(4, 1, 2, msp).scales
    maps = scales(torch.randn(1, 7, 7, 4))
    assert [tuple(y.shape[1:3]) for y in maps] == sizes
    assert scales.number == len(sizes)


def test_intra_ffn_keeps_the_stages_apart():
    layer = randomised(ConvFeedForward([3, 5, 2], 2))
    x = torch.randn(1, 4, 3, 10, dtype=torch.float64)
    other = x.clone()
    other[..., 3:8] += 1
    changed = (layer(x) != layer(other)).flatten(0, 2).any(dim=0)
    assert changed.tolist() == [False] * 3 + [True] * 5 + [False] * 2


def test_one_group_is_the_feed_forward_layer_of_the_paper():
    layer = randomised(ConvFeedForward([6], 1.5))
    x = torch.randn(2, 4, 3, 6, dtype=torch.float64)
    hidden = layer.norm_hidden(layer.expand.convs[0](layer.norm(nchw(x))))
    expected = layer.project.convs[0](F.relu6(layer.depthwise(hidden)))
    assert hidden.shape[1] == 9
    torch.testing.assert_close(layer(x), expected.permute(0, 2, 3, 1), **TOLERANCE)


@pytest.mark.parametrize("grid", [(4, 3), (2, 2), (9, 5)])
def test_squeezing_before_pooling_gives_the_same(grid):
    module = randomised(MSCSA((4, 8), squeeze=0.5, depth=0))
    maps = [torch.randn(2, 4, 9, 7).double(), torch.randn(2, 8, 4, 3).double()]
    squeezed = [conv(x) for conv, x in zip(module.squeeze.convs, maps, strict=True)]
    pooled = torch.cat([F.adaptive_avg_pool2d(x, grid) for x in squeezed], dim=1)
    expected = module.norm(pooled).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(maps, grid), expected, **TOLERANCE)


def test_a_smaller_map_is_repeated_or_interpolated():
    """CoaT's stage 4 on the grid of stage 3."""
    coarse, fine = torch.randn(1, 3, 2, 3).double(), torch.randn(1, 2, 4, 6).double()
    repeated = torch.cat([fine, coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)], dim=1)
    smooth = F.interpolate(coarse, (4, 6), mode="bilinear", align_corners=False)
    for enlarge, expected in (("pool", repeated), ("bilinear", torch.cat([fine, smooth], dim=1))):
        module = randomised(MSCSA((2, 3), depth=0, enlarge=enlarge))
        found = module([fine, coarse], (4, 6))
        torch.testing.assert_close(found, module.norm(expected).permute(0, 2, 3, 1), **TOLERANCE)


@pytest.mark.parametrize(("grid", "size"), [(16, (5, 7)), (32, (3, 4)), (64, (2, 2))])
def test_size_of_the_grid(grid, size):
    model = small(grid=grid).eval()
    sizes = []
    model.mscsa.norm.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[2:])))
    model(torch.randn(1, 3, 75, 101))
    assert sizes == [size]


def test_concatenated_head_sees_the_last_stage():
    model = small(head="concat", num_classes=0).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = model(x)
        last = model.forward_features(x)[-1].mean(dim=(2, 3))
    assert pooled.shape == (2, sum(model.mscsa.widths) + 32)
    torch.testing.assert_close(pooled[:, -32:], last)


def test_injection_is_that_of_figure_5():
    model = randomised(small(features_only=True))
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    maps = model.forward_features(image)
    semantics = nchw(model.mscsa(maps, maps[3].shape[2:])).split(model.mscsa.widths, dim=1)
    for fused, x, g, layer in zip(
        model(image), maps, semantics, model.injections.values(), strict=True
    ):
        up = partial(F.interpolate, size=x.shape[2:], mode="bilinear")
        gate = up(F.relu6(layer.weight(g) + 3) / 6)
        expected = layer.local(x) * gate + up(layer.offset(g))
        torch.testing.assert_close(fused, expected, **TOLERANCE)


def test_drop_path_rises_linearly_over_pairs_of_branches():
    model = small(drop_path=0.6, depth=2)
    rates = [layer.rate for block in model.mscsa.blocks for layer in block.drop_paths]
    torch.testing.assert_close(rates, [0.0, 0.2, 0.4, 0.6])


def test_initialisation():
    """Every convolution by its fan-out, also those that share one weight."""
    torch.manual_seed(0)
    module = MSCSA((64, 64), heads=8, head_dim=16)
    layer = module.blocks[0].first_attention
    query, key, value = layer.projections[0].conv.weight.split(layer.widths[0])
    for weight, fan_out in (
        (query, 128),
        (key, 128),
        (value, 256),
        (layer.projections[1].conv.weight[128:], 256),
        (layer.value_conv.weight, 9),
        (layer.project.weight, 128),
        (module.blocks[0].intra_ffn.expand.convs[0].weight, 128),
    ):
        assert abs(weight.std().item() * (fan_out / 2) ** 0.5 - 1) < 0.06
    assert not layer.project.bias.any()
    assert isinstance(module.blocks[0].ffn.expand, GroupedPointwise)
