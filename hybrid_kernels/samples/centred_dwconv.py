"""Samples of centred_dwconv: images larger than a band, several in one job, and every border."""

from collections.abc import Callable

from torch import Tensor

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import channels_first, expanded, sliced

Map = Callable[..., Tensor]


def _data(make: Maker, *shape: int) -> Tensor:
    """Values whose mean is not what is left of them."""
    return make.data(*shape) + 2


def _call(make: Maker, shape, x: Map = _data):
    return x(make, *shape), make.parameter(3, 3, shape[3])


def _sample(name: str, shape, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, shape, **options), cost)


def _channels_first(make: Maker, *shape: int) -> Tensor:
    return channels_first(_data(make, *shape))


SAMPLES = (
    _sample("stage1", (2, 56, 56, 32), cost=Cost.HUGE),
    _sample("bands", (1, 75, 20, 65), cost=Cost.HUGE),
    _sample("small_images", (20, 4, 3, 16), cost=Cost.HUGE),
    _sample("two_images", (2, 3, 5, 8), cost=Cost.SMALL),
    _sample("odd_width", (1, 4, 6, 5), cost=Cost.SMALL),
    _sample("one_pixel", (2, 1, 1, 16), cost=Cost.SMALL),
    _sample("zero_batch", (0, 4, 4, 8), cost=Cost.SMALL),
    _sample("one_size", (2, 6, 7, 24)),
    _sample("other_size", (3, 5, 9, 24)),
    _sample("sliced", (2, 3, 4, 18), x=sliced),
    _sample("two_rows", (1, 2, 2, 3), cost=Cost.LARGE),
    _sample("one_row", (2, 1, 11, 3), cost=Cost.LARGE),
    _sample("one_column", (1, 7, 1, 35), cost=Cost.LARGE),
    _sample("channels_first", (2, 4, 3, 6), x=_channels_first, cost=Cost.LARGE),
    _sample("expanded", (1, 4, 5, 9), x=expanded, cost=Cost.LARGE),
)


_bad = changed_calls(("x", "weight"), lambda make: _call(make, (2, 4, 4, 8)))


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", x=lambda x: x[0]),
    _bad("no_pixel", "x has shape .*at least one pixel", x=lambda x: x[:, :0]),
    _bad(
        "no_channel",
        "x has shape .*at least one channel",
        x=lambda x: x[..., :0],
        weight=lambda w: w[..., :0],
    ),
    _bad("integers", "x has .*expected float32", x=lambda x: x.int()),
    _bad("weight_shape", r"weight has shape .*\(3, 3, 8\)", weight=lambda w: w.permute(2, 0, 1)),
    _bad("weight_dtype", "weight has .*float64", weight=lambda w: w.double()),
)

DECLARATION = Declaration(
    op="centred_dwconv",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x",),
)
