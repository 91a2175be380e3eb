"""Samples of dwconv_act: every activation, and widths around the tiles that kernels work in."""

from collections.abc import Callable

from torch import Tensor

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import channels_first, expanded, sliced

Map = Callable[..., Tensor]


def _call(make: Maker, shape, act: str = "gelu", bias: bool = True, x: Map = Maker.data):
    C = shape[3]
    weight = make.parameter(3, 3, C)
    return x(make, *shape), weight, make.parameter(C) if bias else None, act


def _sample(name: str, shape, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, shape, **options), cost)


def _channels_first(make: Maker, *shape: int) -> Tensor:
    return channels_first(make.data(*shape))


SAMPLES = (
    _sample("pvt_stage2", (1, 28, 28, 512), cost=Cost.HUGE),
    _sample("bands", (1, 75, 20, 65), act="relu6", cost=Cost.HUGE),
    _sample("small_images", (20, 4, 3, 16), act="hardswish", cost=Cost.HUGE),
    _sample("gelu", (2, 3, 5, 8), cost=Cost.SMALL),
    _sample("relu6", (1, 4, 6, 5), act="relu6", cost=Cost.SMALL),
    _sample("no_bias", (1, 3, 4, 7), act="none", bias=False, cost=Cost.SMALL),
    _sample("one_pixel", (1, 1, 1, 16), cost=Cost.SMALL),
    _sample("zero_batch", (0, 4, 4, 8), cost=Cost.SMALL),
    _sample("one_size", (2, 6, 7, 24)),
    _sample("other_size", (3, 5, 9, 24)),
    _sample("hardswish", (2, 5, 4, 19), act="hardswish", cost=Cost.LARGE),
    _sample("sliced", (2, 3, 4, 18), x=sliced),
    _sample("relu", (1, 2, 9, 3), act="relu", bias=False, cost=Cost.LARGE),
    _sample("plain", (1, 4, 13, 4), act="none", cost=Cost.LARGE),
    _sample("one_row", (2, 1, 11, 3), cost=Cost.LARGE),
    _sample("one_column", (1, 7, 1, 35), cost=Cost.LARGE),
    _sample("channels_first", (2, 4, 3, 6), x=_channels_first, cost=Cost.LARGE),
    _sample("expanded", (1, 4, 5, 9), act="relu6", x=expanded, cost=Cost.LARGE),
)


_bad = changed_calls(("x", "weight", "bias", "act"), lambda make: _call(make, (2, 4, 4, 8)))


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", x=lambda x: x[0]),
    _bad("no_pixel", "x has shape .*at least one pixel", x=lambda x: x[:, :0]),
    _bad("integers", "x has .*expected float32", x=lambda x: x.int()),
    _bad("weight_shape", r"weight has shape .*\(3, 3, 8\)", weight=lambda w: w.permute(2, 0, 1)),
    _bad("weight_dtype", "weight has .*float64", weight=lambda w: w.double()),
    _bad("bias_shape", r"bias has shape .*\(8,\)", bias=lambda b: b[:7]),
    _bad("bias_dtype", "bias has .*float16", bias=lambda b: b.half()),
    _bad("activation", "act = 'swish'; expected one of none, relu", act=lambda _: "swish"),
)

DECLARATION = Declaration(
    op="dwconv_act",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x",),
)
