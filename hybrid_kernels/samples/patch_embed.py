"""Samples of patch_embed: both poolings, cut patches, ties, every kind of edge."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    B: int,
    H: int,
    W: int,
    C: int,
    width: int,
    patch: int,
    kind: str,
    pool_mode: str = "ceil",
):
    return make.data(B, H, W, C), make.data(width, C) * C**-0.5, patch, kind, pool_mode


def _sample(name: str, *call, cost=Cost.MEDIUM) -> Sample:
    return Sample(name, lambda make: _call(make, *call), cost)


def _small(name: str, *call) -> Sample:
    return _sample(name, *call, cost=Cost.SMALL)


def _slice(make: Maker):
    """Some channels of every second pixel of a larger map, and a weight that is transposed."""
    x, weight, *rest = _call(make, 2, 10, 8, 9, 5, 2, "max")
    return x[:, ::2, ::2, 2:6], weight[:, :4].T.contiguous().T, *rest


def _ties(make: Maker):
    """Few different values, so that patches have several largest pixels."""
    x, *rest = _call(make, 2, 5, 6, 3, 2, 3, "max")
    return x.sign(), *rest


SAMPLES = (
    _sample("stage1_max", 2, 56, 56, 4, 8, 2, "max", cost=Cost.HUGE),
    _sample("stage1_avg", 2, 28, 28, 8, 8, 6, "avg", cost=Cost.LARGE),
    _sample("detection", 1, 50, 30, 20, 40, 4, "max", cost=Cost.HUGE),
    _sample("wide", 1, 3, 4, 70, 40, 2, "max"),
    _sample("one_size", 4, 7, 9, 6, 11, 2, "max", cost=Cost.LARGE),
    _sample("other_size", 5, 8, 13, 6, 11, 2, "max", cost=Cost.LARGE),
    _small("max", 2, 3, 5, 2, 3, 2, "max"),
    _small("avg", 2, 3, 5, 2, 3, 2, "avg"),
    _small("floor", 1, 5, 4, 3, 2, 3, "avg", "floor"),
    _sample("floor_max", 2, 5, 7, 3, 2, 2, "max", "floor"),
    _sample("one_pixel", 1, 1, 1, 3, 1, 16, "max", cost=Cost.LARGE),
    _sample("largest_patch", 1, 17, 3, 1, 2, 16, "max", cost=Cost.LARGE),
    _sample("patch_1", 1, 2, 3, 3, 4, 1, "max", cost=Cost.LARGE),
    _small("zero_batch", 0, 3, 2, 2, 3, 2, "max"),
    Sample("slice", _slice, cost=Cost.LARGE),
    Sample("ties", _ties),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        x, weight, patch, kind, pool_mode = _call(make, 2, 4, 4, 3, 2, 2, "max")
        given = dict(x=x, weight=weight, patch=patch, kind=kind, pool_mode=pool_mode)
        return tuple((given | change(x, weight)).values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", lambda x, w: {"x": x[0]}),
    _bad("no_pixel", "x has shape .*at least one pixel", lambda x, w: {"x": x[:, :0]}),
    _bad("integers", "x has .*expected float32", lambda x, w: {"x": x.int()}),
    _bad("patch", "patch = 17; expected 1 to 16", lambda x, w: {"patch": 17}),
    _bad("kind", "kind = 'sum'; expected max or avg", lambda x, w: {"kind": "sum"}),
    _bad("mode", "pool_mode = 'up'; expected ceil or floor", lambda x, w: {"pool_mode": "up"}),
    _bad("floor", "no whole patch of side 5", lambda x, w: {"patch": 5, "pool_mode": "floor"}),
    _bad("weight", r"weight has shape .*\(C', C\)", lambda x, w: {"weight": w[:, 1:]}),
    _bad("dtype", "weight has .*convert", lambda x, w: {"weight": w.half()}),
)

DECLARATION = Declaration(
    op="patch_embed",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x", "weight"),
)
