"""Samples of lift_pool: both groups and reductions, and widths around the tiles that kernels use.

Values are random: two responses are equal only where the zeros around the map make them so, and
there their kernels' gradients agree as well. Other ties have no finite differences.
"""

from collections.abc import Callable

from torch import Tensor

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import channels_first, expanded, sliced

Map = Callable[..., Tensor]


def _call(make: Maker, shape, group: str = "p4", reduce: str = "max", x: Map = Maker.data):
    return x(make, *shape), make.parameter(3, 3, shape[3]), group, reduce


def _sample(name: str, shape, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, shape, **options), cost)


def _channels_first(make: Maker, *shape: int) -> Tensor:
    return channels_first(make.data(*shape))


SAMPLES = (
    _sample("mhvn_stage1", (1, 28, 28, 288), cost=Cost.HUGE),
    _sample("bands", (1, 75, 20, 65), group="p4m", cost=Cost.HUGE),
    _sample("small_images", (20, 4, 3, 16), cost=Cost.HUGE),
    _sample("p4", (2, 3, 5, 8), cost=Cost.SMALL),
    _sample("p4m", (1, 4, 6, 5), group="p4m", cost=Cost.SMALL),
    _sample("mean", (1, 3, 4, 7), reduce="mean", cost=Cost.SMALL),
    _sample("one_pixel", (1, 1, 1, 16), cost=Cost.SMALL),
    _sample("zero_batch", (0, 4, 4, 8), cost=Cost.SMALL),
    _sample("one_size", (2, 6, 7, 24)),
    _sample("other_size", (3, 5, 9, 24)),
    _sample("sliced", (2, 3, 4, 18), x=sliced),
    _sample("mean_p4m", (2, 5, 4, 19), group="p4m", reduce="mean", cost=Cost.LARGE),
    _sample("one_row", (2, 1, 11, 3), cost=Cost.LARGE),
    _sample("one_column", (1, 7, 1, 35), group="p4m", cost=Cost.LARGE),
    _sample("channels_first", (2, 4, 3, 6), x=_channels_first, cost=Cost.LARGE),
    _sample("expanded", (1, 4, 5, 9), x=expanded, cost=Cost.LARGE),
)


_bad = changed_calls(("x", "weight", "group", "reduce"), lambda make: _call(make, (2, 4, 4, 8)))


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", x=lambda x: x[0]),
    _bad("no_pixel", "x has shape .*at least one pixel", x=lambda x: x[:, :0]),
    _bad("integers", "x has .*expected float32", x=lambda x: x.int()),
    _bad("weight_shape", r"weight has shape .*\(3, 3, 8\)", weight=lambda w: w.permute(2, 0, 1)),
    _bad("weight_dtype", "weight has .*float64", weight=lambda w: w.double()),
    _bad("group", "group = 'p6'; expected p4 or p4m", group=lambda _: "p6"),
    _bad("reduce", "reduce = 'sum'; expected max or mean", reduce=lambda _: "sum"),
)

DECLARATION = Declaration(
    op="lift_pool",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x",),
)
