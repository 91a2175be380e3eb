"""Samples of value_conv: with and without the norm, and widths around the kernels' tiles."""

from collections.abc import Callable

from torch import Tensor

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import channels_first, expanded, sliced

Map = Callable[..., Tensor]

NAMES = ("out", "v", "weight", "bias", "scale", "shift")


def _call(make: Maker, shape, norm: bool = False, out: Map = Maker.data, v: Map = Maker.data):
    C = shape[3]
    affine = (make.parameter(C), make.parameter(C)) if norm else (None, None)
    return out(make, *shape), v(make, *shape), make.parameter(3, 3, C), make.parameter(C), *affine


def _sample(name: str, shape, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, shape, **options), cost)


def _values_of_a_projection(make: Maker, *shape: int) -> Tensor:
    """Queries, keys and values side by side: the last channels."""
    *size, C = shape
    return make.data(*size, 2 * C)[..., C:]


def _channels_first(make: Maker, *shape: int) -> Tensor:
    return channels_first(make.data(*shape))


SAMPLES = (
    _sample("pvt_b2", (1, 25, 40, 560), cost=Cost.HUGE),
    _sample("bands", (1, 75, 20, 65), norm=True, cost=Cost.HUGE),
    _sample("small_images", (20, 4, 3, 16), norm=True, cost=Cost.HUGE),
    _sample("plain", (2, 3, 5, 8), cost=Cost.SMALL),
    _sample("norm", (1, 4, 6, 5), norm=True, cost=Cost.SMALL),
    _sample("one_pixel", (1, 1, 1, 16), norm=True),
    _sample("zero_batch", (0, 4, 4, 8), norm=True, cost=Cost.SMALL),
    _sample("one_size", (2, 6, 7, 24)),
    _sample("other_size", (3, 5, 9, 24)),
    _sample("projected", (2, 3, 4, 18), norm=True, v=_values_of_a_projection),
    _sample("sliced", (2, 3, 4, 18), out=sliced, cost=Cost.LARGE),
    _sample("one_row", (2, 1, 11, 3), cost=Cost.LARGE),
    _sample("one_column", (1, 7, 1, 35), norm=True, cost=Cost.LARGE),
    _sample("channels_first", (2, 4, 3, 6), v=_channels_first, cost=Cost.LARGE),
    _sample("expanded", (1, 4, 5, 9), norm=True, out=expanded, cost=Cost.LARGE),
)


_bad = changed_calls(NAMES, lambda make: _call(make, (2, 4, 4, 8), norm=True))


BAD_CALLS = (
    _bad("rank", r"out has shape .*\(B, H, W, C\)", out=lambda x: x[0]),
    _bad("no_pixel", "out has shape .*at least one pixel", out=lambda x: x[:, :0]),
    _bad("integers", "out has .*expected float32", out=lambda x: x.int()),
    _bad("v_shape", r"v has shape .*\(2, 4, 4, 8\) = \(B, H, W, C\), as out", v=lambda v: v[:, :3]),
    _bad("v_dtype", "v has .*float16", v=lambda v: v.half()),
    _bad("weight_shape", r"weight has shape .*\(3, 3, 8\)", weight=lambda w: w.permute(2, 0, 1)),
    _bad("bias_dtype", "bias has .*float16", bias=lambda b: b.half()),
    _bad("scale_alone", "scale and shift .*shift is None", shift=lambda _: None),
    _bad("shift_alone", "scale and shift .*scale is None", scale=lambda _: None),
    _bad("scale_shape", r"scale has shape .*\(8,\)", scale=lambda s: s[:7]),
)

DECLARATION = Declaration(
    op="value_conv",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("out", "v"),
)
