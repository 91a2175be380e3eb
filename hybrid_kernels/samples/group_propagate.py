"""Samples of group_propagate: maps around panels and bands, few to many tokens, any head width."""

from collections.abc import Callable

from torch import Tensor

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import expanded, sliced

Map = Callable[..., Tensor]


def _call(
    make: Maker,
    shape,
    tokens: int,
    heads: int = 2,
    scale: float | None = None,
    x: Map = Maker.data,
):
    B, _, _, C = shape
    d = C // heads
    convs = (make.parameter(3, 3, C), make.parameter(C), make.parameter(5, 5, C), make.parameter(C))
    kv3, kv5 = make.data(B, tokens, 2, heads, d), make.data(B, tokens, 2, heads, d)
    # A stencil of normal taps gives queries that large: weights should not be all or nothing.
    return x(make, *shape), *convs, kv3, kv5, (25 * d) ** -0.5 if scale is None else scale


def _sample(name: str, shape, tokens: int, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, shape, tokens, **options), cost)


def _packed(make: Maker):
    """Tokens of both branches as slices of one projection, every second one."""
    x, *convs, _, _, scale = _call(make, (1, 3, 2, 8), 3)
    kv3, kv5 = make.data(1, 6, 4, 2, 4)[:, ::2].split(2, dim=2)
    return x, *convs, kv3, kv5, scale


SAMPLES = (
    _sample("mcga_stage3", (2, 14, 14, 128), 8, heads=4, cost=Cost.HUGE),
    _sample("bands", (1, 47, 9, 20), 8, heads=5, cost=Cost.HUGE),
    _sample("wide_rows", (1, 3, 150, 8), 4, cost=Cost.HUGE),
    _sample("small_images", (9, 4, 3, 16), 5, cost=Cost.HUGE),
    _sample("one_size", (4, 7, 8, 12), 9, heads=1),
    _sample("other_size", (7, 4, 9, 12), 8, heads=1, cost=Cost.LARGE),
    _sample("many_tokens", (1, 4, 4, 8), 19, cost=Cost.LARGE),
    _sample("width_18", (1, 4, 3, 36), 3, cost=Cost.LARGE),
    _sample("large_scores", (1, 3, 3, 8), 3, heads=1, scale=8.0, cost=Cost.LARGE),
    _sample("one_row", (1, 1, 4, 3), 2, heads=1, cost=Cost.SMALL),
    _sample("one_token", (1, 3, 2, 4), 1, cost=Cost.LARGE),
    _sample("one_pixel", (2, 1, 1, 8), 3, cost=Cost.LARGE),
    _sample("zero_batch", (0, 3, 3, 8), 3, cost=Cost.SMALL),
    _sample("sliced", (1, 2, 3, 8), 3, x=sliced, cost=Cost.LARGE),
    _sample("expanded", (1, 3, 4, 6), 3, heads=3, x=expanded, scale=-0.1, cost=Cost.LARGE),
    Sample("packed", _packed),
)


_bad = changed_calls(
    ("x", "w3", "b3", "w5", "b5", "kv3", "kv5", "scale"), lambda make: _call(make, (2, 4, 4, 8), 3)
)


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", x=lambda x: x[0]),
    _bad("no_pixel", "x has shape .*at least one pixel", x=lambda x: x[:, :0]),
    _bad("integers", "x has .*expected float32", x=lambda x: x.int()),
    _bad("w3_shape", r"w3 has shape .*\(side, side, C\)", w3=lambda w: w.permute(2, 0, 1)),
    _bad("w5_shape", "w5 has shape", w5=lambda w: w[1:4, 1:4]),
    _bad("b3_dtype", "b3 has .*float64", b3=lambda b: b.double()),
    _bad("b5_shape", r"b5 has shape .*\(C,\)", b5=lambda b: b[:7]),
    _bad("kv3_rank", r"kv3 has shape .*\(B, G, 2, heads", kv3=lambda kv: kv[:, :, 0]),
    _bad("no_token", "kv3 has shape .*at least one token", kv3=lambda kv: kv[:, :0]),
    _bad("kv3_width", "kv3 has shape .*channels of x, 8", kv3=lambda kv: kv[..., :3]),
    _bad("kv5_tokens", "kv5 has shape", kv5=lambda kv: kv[:, :2]),
    _bad("kv5_dtype", "kv5 has .*convert", kv5=lambda kv: kv.half()),
    _bad("infinite_scale", "scale = inf", scale=lambda _: float("inf")),
)

DECLARATION = Declaration(
    op="group_propagate",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x", "kv3", "kv5"),
)
