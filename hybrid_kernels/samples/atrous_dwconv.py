"""Samples of atrous_dwconv: ACC-ViT's dilations with both strides, and maps smaller than them."""

from collections.abc import Callable

from torch import Tensor

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import channels_first, expanded, sliced

Map = Callable[..., Tensor]
DILATIONS = (1, 2, 3)
MAX_BRANCHES = 8


def _call(make: Maker, shape, dilations=DILATIONS, stride: int = 1, x: Map = Maker.data):
    weight = make.parameter(len(dilations), shape[3], 3, 3)
    return x(make, *shape), weight, list(dilations), stride


def _sample(name: str, shape, *options, cost=Cost.MEDIUM, **named) -> Sample:
    return Sample(name, lambda make: _call(make, shape, *options, **named), cost)


def _channels_first(make: Maker, *shape: int) -> Tensor:
    return channels_first(make.data(*shape))


SAMPLES = (
    _sample("stage1", (1, 56, 56, 256), cost=Cost.HUGE),
    _sample("stage1_strided", (1, 57, 56, 70), DILATIONS, 2, cost=Cost.HUGE),
    _sample("small_images", (20, 4, 3, 16), cost=Cost.HUGE),
    _sample("three", (1, 5, 4, 5), cost=Cost.SMALL),
    _sample("strided", (1, 5, 6, 3), (1, 3), 2, cost=Cost.SMALL),
    _sample("one_pixel", (1, 1, 1, 16), (2,), cost=Cost.SMALL),
    _sample("zero_batch", (0, 4, 4, 8), (1,), cost=Cost.SMALL),
    _sample("one_size", (4, 5, 7, 24), (1, 2)),
    _sample("other_size", (5, 6, 8, 24), (1, 2)),
    _sample("undilated_strided", (1, 6, 5, 19), (1,), 2, cost=Cost.LARGE),
    _sample("even_dilation_strided", (2, 9, 7, 4), (4, 2), 2, cost=Cost.LARGE),
    _sample("wide", (1, 6, 30, 2), (5, 13), cost=Cost.LARGE),
    _sample("one_row", (2, 1, 11, 3), cost=Cost.LARGE),
    _sample("channels_first", (2, 4, 3, 6), x=_channels_first, cost=Cost.LARGE),
    _sample("sliced", (2, 3, 4, 18), x=sliced, cost=Cost.LARGE),
    _sample("expanded", (1, 4, 5, 9), (1, 2), 2, x=expanded, cost=Cost.LARGE),
)


_bad = changed_calls(("x", "weight", "dilations", "stride"), lambda make: _call(make, (2, 4, 4, 8)))


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", x=lambda x: x[0]),
    _bad("no_pixel", "x has shape .*at least one pixel", x=lambda x: x[:, :, :0]),
    _bad("integers", "x has .*expected float32", x=lambda x: x.int()),
    _bad("weight_shape", r"weight has shape .*\(3, 8, 3, 3\)", weight=lambda w: w[:2]),
    _bad("weight_dtype", "weight has .*float64", weight=lambda w: w.double()),
    _bad("no_branch", r"dilations = \(\); expected 1 to 8", dilations=lambda _: []),
    _bad("no_dilation", r"dilations = \(1, 0, 3\); .*1 to 64", dilations=lambda _: [1, 0, 3]),
    _bad("wide_dilation", r"dilations = \(1, 2, 65\); .*1 to 64", dilations=lambda _: [1, 2, 65]),
    _bad("stride", "stride = 3; expected 1 or 2", stride=lambda _: 3),
)

DECLARATION = Declaration(
    op="atrous_dwconv",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x",),
    differentiable=MAX_BRANCHES,
)
