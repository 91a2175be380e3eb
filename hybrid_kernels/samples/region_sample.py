"""Samples of region_sample: MRL's stages, ragged regions, and regions larger than the map."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(make: Maker, shape: tuple[int, int, int, int], region: int, bias: bool = False):
    channels = shape[3]
    weight = make.parameter(region, region, channels)
    return make.data(*shape), weight, make.parameter(channels) if bias else None


def _sample(name: str, shape, region: int, *, cost=Cost.SMALL, bias=False) -> Sample:
    return Sample(name, lambda make: _call(make, shape, region, bias), cost)


def _channels_first(make: Maker):
    """A map as convolutions leave it, and a kernel as they keep it: (C, 1, r, r)."""
    x = make.data(2, 5, 7, 6).permute(0, 2, 3, 1)
    return x, make.parameter(5, 1, 3, 3).squeeze(1).permute(1, 2, 0), None


def _sliced(make: Maker):
    """The pixels of tokens (B, 1 + H * W, C), the class token left out."""
    _, weight, bias = _call(make, (2, 5, 6, 20), 2, bias=True)
    return make.data(2, 31, 20)[:, 1:].unflatten(1, (5, 6)), weight, bias


def _expanded(make: Maker):
    """One image broadcast over a batch, and one row over all rows, by stride 0."""
    return (
        make.data(1, 1, 5, 4).expand(2, 3, -1, -1),
        make.parameter(1, 1, 4).expand(2, 2, -1),
        None,
    )


SAMPLES = (
    _sample("stage1", (2, 56, 56, 64), 4, cost=Cost.HUGE),
    _sample("stage3", (3, 14, 14, 384), 2, bias=True, cost=Cost.HUGE),
    # Larger than the caches: another way of storing.
    _sample("streamed", (3, 75, 150, 64), 8, cost=Cost.HUGE),
    _sample("one_size", (2, 16, 22, 20), 3, bias=True, cost=Cost.LARGE),
    _sample("other_size", (5, 19, 13, 20), 3, bias=True, cost=Cost.LARGE),
    _sample("even", (2, 4, 6, 8), 2, bias=True),
    _sample("ragged", (2, 4, 7, 4), 3),
    _sample("wide", (1, 9, 11, 35), 2, cost=Cost.MEDIUM),
    _sample("many_images", (40, 3, 5, 16), 2, cost=Cost.MEDIUM),
    _sample("region_1", (2, 3, 4, 5), 1, bias=True),
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
        x, weight, bias = _call(make, (1, 6, 6, 4), 3, bias=True)
        arguments = dict(x=x, weight=weight, bias=bias)
        arguments.update(change(**arguments))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad(
        "rank", r"x has shape .*expected 4 dimensions: \(B, H, W, C\)", lambda x, **_: {"x": x[0]}
    ),
    _bad("integers", "x has .*expected float32", lambda x, **_: {"x": x.int()}),
    _bad("no_pixel", "expected at least one pixel", lambda x, **_: {"x": x[:, :0]}),
    _bad("no_tap", "expected .*r >= 1", lambda weight, **_: {"weight": weight[:0, :0]}),
    _bad("oblong", r"weight has shape .*\(2, 2, 4\)", lambda weight, **_: {"weight": weight[:2]}),
    _bad("channels", r"weight has shape", lambda weight, **_: {"weight": weight[..., :3]}),
    _bad("weight_dtype", "weight has .*float64", lambda weight, **_: {"weight": weight.double()}),
    _bad("bias_shape", r"bias has shape .*\(4,\)", lambda bias, **_: {"bias": bias[:2]}),
)

DECLARATION = Declaration(
    op="region_sample",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x",),
)
