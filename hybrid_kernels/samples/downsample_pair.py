"""Samples of downsample_pair: sizes of every remainder by 2 and 3, with and without the norm."""

from collections.abc import Callable

from torch import Tensor

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import channels_first, expanded, sliced

Map = Callable[..., Tensor]

NAMES = ("x", "weight3", "weight5", "scale", "shift")


def _call(make: Maker, shape, norm: bool = False, x: Map = Maker.data):
    C = shape[3]
    affine = (make.parameter(C), make.parameter(C)) if norm else (None, None)
    return x(make, *shape), make.parameter(3, 3, C), make.parameter(5, 5, C), *affine


def _sample(name: str, shape, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, shape, **options), cost)


def _channels_first(make: Maker, *shape: int) -> Tensor:
    return channels_first(make.data(*shape))


SAMPLES = (
    _sample("pvt_b1", (2, 7, 7, 640), cost=Cost.HUGE),
    _sample("bands", (1, 75, 20, 65), norm=True, cost=Cost.HUGE),
    _sample("small_images", (20, 4, 3, 16), norm=True, cost=Cost.HUGE),
    _sample("plain", (2, 3, 5, 4), cost=Cost.SMALL),
    _sample("norm", (1, 3, 4, 5), norm=True, cost=Cost.SMALL),
    _sample("zero_batch", (0, 4, 4, 8), norm=True, cost=Cost.SMALL),
    _sample("one_pixel", (1, 1, 1, 16), norm=True, cost=Cost.LARGE),
    _sample("one_size", (2, 6, 7, 12)),
    _sample("other_size", (3, 5, 9, 12)),
    _sample("sliced", (2, 8, 4, 9), norm=True, x=sliced, cost=Cost.LARGE),
    _sample("one_row", (2, 1, 11, 3), cost=Cost.LARGE),
    _sample("one_column", (1, 7, 1, 35), norm=True, cost=Cost.LARGE),
    _sample("channels_first", (2, 4, 2, 6), x=_channels_first, cost=Cost.LARGE),
    _sample("expanded", (1, 4, 5, 9), norm=True, x=expanded, cost=Cost.LARGE),
)


_bad = changed_calls(NAMES, lambda make: _call(make, (2, 4, 4, 8), norm=True))


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", x=lambda x: x[0]),
    _bad("no_pixel", "x has shape .*at least one pixel", x=lambda x: x[:, :0]),
    _bad("integers", "x has .*expected float32", x=lambda x: x.int()),
    _bad("weight3_shape", r"weight3 has shape .*\(3, 3, 8\)", weight3=lambda w: w[:2]),
    _bad("weight5_shape", r"weight5 has shape .*\(5, 5, 8\)", weight5=lambda w: w[:3, :3]),
    _bad("weight5_dtype", "weight5 has .*float64", weight5=lambda w: w.double()),
    _bad("scale_alone", "scale and shift .*shift is None", shift=lambda _: None),
    _bad("shift_alone", "scale and shift .*scale is None", scale=lambda _: None),
    _bad("shift_dtype", "shift has .*float16", shift=lambda s: s.half()),
)

DECLARATION = Declaration(
    op="downsample_pair",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x",),
    differentiable=2,
)
