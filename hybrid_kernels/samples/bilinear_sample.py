"""Samples of bilinear_sample: points within the map and beyond every side, odd and tiny maps."""

from collections.abc import Callable

from torch import Tensor

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import channels_first, expanded, sliced

Map = Callable[..., Tensor]


def _call(make: Maker, shape, spread: float = 1.0, x: Map = Maker.data):
    B, H, W, _ = shape
    return x(make, *shape), spread * make.parameter(B, (H + 1) // 2, (W + 1) // 2, 2)


def _sample(name: str, shape, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, shape, **options), cost)


def _channels_first(make: Maker, *shape: int) -> Tensor:
    return channels_first(make.data(*shape))


SAMPLES = (
    _sample("stage2", (2, 56, 56, 64), cost=Cost.HUGE),
    _sample("blocks", (9, 10, 8, 100), cost=Cost.HUGE),
    _sample("even", (2, 4, 6, 8), cost=Cost.SMALL),
    _sample("odd", (1, 5, 3, 5), spread=3.0, cost=Cost.SMALL),
    _sample("one_pixel", (1, 1, 1, 16), cost=Cost.SMALL),
    _sample("zero_batch", (0, 4, 4, 8), cost=Cost.SMALL),
    _sample("one_size", (5, 6, 7, 20)),
    _sample("other_size", (3, 8, 9, 20)),
    _sample("sliced", (2, 3, 4, 18), x=sliced),
    _sample("all_in_a_corner", (1, 6, 6, 3), spread=100.0, cost=Cost.LARGE),
    _sample("one_row", (2, 1, 9, 3), cost=Cost.LARGE),
    _sample("one_column", (1, 7, 1, 35), cost=Cost.LARGE),
    _sample("channels_first", (2, 4, 3, 6), x=_channels_first, cost=Cost.LARGE),
    _sample("expanded", (1, 4, 5, 9), x=expanded, cost=Cost.LARGE),
)


_bad = changed_calls(("x", "offset"), lambda make: _call(make, (2, 4, 5, 8)))


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", x=lambda x: x[0]),
    _bad("no_pixel", "x has shape .*at least one pixel", x=lambda x: x[:, :0]),
    _bad("integers", "x has .*expected float32", x=lambda x: x.int()),
    _bad("offset_shape", r"offset has shape .*\(2, 2, 3, 2\)", offset=lambda o: o[:, :, :2]),
    _bad("offset_dtype", "offset has .*float16", offset=lambda o: o.half()),
)

DECLARATION = Declaration(
    op="bilinear_sample",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x",),
)
