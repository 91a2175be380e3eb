"""Samples of region_mix: MRL's stages, ragged regions, every side of the kernel."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker, shape: tuple[int, int, int, int], region: int, side: int = 3, bias: bool = False
):
    B, H, W, C = shape
    x, g = make.data(*shape), make.data(B, -(-H // region), -(-W // region), C)
    return x, g, make.parameter(side, side, C), region, make.parameter(C) if bias else None


def _sample(name: str, shape, region: int, side=3, *, cost=Cost.SMALL, bias=False) -> Sample:
    return Sample(name, lambda make: _call(make, shape, region, side, bias), cost)


def _channels_first(make: Maker):
    """Maps as convolutions leave them, and a kernel as they keep it: (C, 1, k, k)."""
    x, g = make.data(2, 5, 3, 6).permute(0, 2, 3, 1), make.data(2, 5, 2, 3).permute(0, 2, 3, 1)
    return x, g, make.parameter(5, 1, 3, 3).squeeze(1).permute(1, 2, 0), 2, None


def _sliced(make: Maker):
    """Pixels and regional tokens behind their class tokens: (B, 1 + H * W, C)."""
    *_, weight, region, bias = _call(make, (2, 3, 6, 20), 2, bias=True)
    x, g = make.data(2, 19, 20)[:, 1:], make.data(2, 7, 20)[:, 1:]
    return x.unflatten(1, (3, 6)), g.unflatten(1, (2, 3)), weight, region, bias


def _expanded(make: Maker):
    """One image broadcast over a batch, and one token over all regions, by stride 0."""
    x, g = make.data(1, 3, 4, 4).expand(2, -1, -1, -1), make.data(2, 1, 1, 4).expand(-1, 2, 2, -1)
    return x, g, make.parameter(1, 3, 4).expand(3, -1, -1), 2, None


SAMPLES = (
    _sample("stage1", (2, 56, 56, 64), 4, cost=Cost.HUGE),
    _sample("stage3", (3, 14, 14, 384), 2, bias=True, cost=Cost.HUGE),
    # Larger than the caches: another way of storing.
    _sample("streamed", (3, 75, 150, 64), 8, cost=Cost.HUGE),
    _sample("one_size", (2, 16, 22, 20), 3, bias=True, cost=Cost.LARGE),
    _sample("other_size", (5, 19, 13, 20), 3, bias=True, cost=Cost.LARGE),
    _sample("even", (2, 4, 6, 8), 2, bias=True),
    _sample("ragged", (2, 4, 7, 4), 3),
    _sample("side_5", (1, 5, 6, 35), 2, 5, cost=Cost.MEDIUM),
    _sample("side_7", (1, 4, 9, 5), 3, 7, cost=Cost.MEDIUM, bias=True),
    _sample("side_1", (2, 3, 2, 5), 2, 1),
    _sample("many_images", (40, 3, 5, 16), 2, cost=Cost.MEDIUM),
    _sample("region_1", (2, 3, 4, 3), 1, bias=True),
    _sample("region_beyond_map", (2, 2, 3, 3), 5, bias=True),
    _sample("one_pixel", (1, 1, 1, 7), 4),
    _sample("one_row", (2, 1, 13, 1), 5, cost=Cost.MEDIUM),
    _sample("zero_batch", (0, 5, 7, 4), 2, bias=True),
    Sample("channels_first", _channels_first, Cost.SMALL),
    Sample("sliced", _sliced, Cost.SMALL),
    Sample("expanded", _expanded, Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        x, g, weight, region, bias = _call(make, (1, 6, 6, 4), 3, bias=True)
        arguments = dict(x=x, g=g, weight=weight, region=region, bias=bias)
        arguments.update(change(**arguments))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad(
        "rank", r"x has shape .*expected 4 dimensions: \(B, H, W, C\)", lambda x, **_: {"x": x[0]}
    ),
    _bad("integers", "x has .*expected float32", lambda x, **_: {"x": x.int()}),
    _bad("no_pixel", "expected at least one pixel", lambda x, **_: {"x": x[:, :0]}),
    _bad("region_0", "region = 0; expected >= 1", lambda **_: {"region": 0}),
    _bad("tokens", r"g has shape .*\(1, 2, 2, 4\)", lambda x, **_: {"g": x}),
    _bad("token_dtype", "g has .*float16", lambda g, **_: {"g": g.half()}),
    _bad("even_side", "k = 1, 3, 5 or 7", lambda weight, **_: {"weight": weight[:2, :2]}),
    _bad(
        "oblong", r"weight has shape .*\(3, 3, 4\)", lambda weight, **_: {"weight": weight[:, :2]}
    ),
    _bad("weight_dtype", "weight has .*float64", lambda weight, **_: {"weight": weight.double()}),
    _bad("bias_shape", r"bias has shape .*\(4,\)", lambda bias, **_: {"bias": bias[:2]}),
)

DECLARATION = Declaration(
    op="region_mix",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x", "g"),
)
