"""Samples of token_fusion: one to many tokens, heads of every width, and strided queries."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    batch: int,
    pixels: int,
    tokens: int,
    heads: int = 2,
    d: int = 8,
    scale: float | None = None,
):
    q, y = make.data(batch, pixels, heads, d), make.data(batch, pixels, heads, d)
    kv = make.data(batch, tokens, 2, heads, d)
    return q, kv, y, d**-0.5 if scale is None else scale


def _sample(name: str, *sizes: int, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, *sizes, **options), cost)


def _packed(make: Maker):
    """Queries as a slice of a projection, every second token of a longer list, y of a crop."""
    q = make.data(1, 9, 3, 2, 8)[:, :, 0]
    return q, make.data(1, 6, 2, 2, 8)[:, ::2], make.data(1, 12, 2, 8)[:, 3:], 8**-0.5


def _channel_major(make: Maker):
    """Queries with the pixels side by side, as an NCHW map has them."""
    _, kv, y, scale = _call(make, 1, 7, 3)
    return make.data(1, 2, 8, 7).permute(0, 3, 1, 2), kv, y, scale


def _expanded(make: Maker):
    """One query for all pixels, the tokens of one image for the batch; a negative scale."""
    _, kv, y, scale = _call(make, 1, 5, 3, heads=1, scale=-0.3)
    q = make.data(2, 1, 1, 8).expand(-1, 5, -1, -1)
    return q, kv.expand(2, -1, -1, -1, -1), y.expand(2, -1, -1, -1), scale


SAMPLES = (
    _sample("mat_5_stage3", 2, 196, 4, 16, 16, cost=Cost.LARGE),
    _sample("dense", 1, 1000, 96, 4, 16, cost=Cost.HUGE),
    _sample("one_size", 3, 20, 5, 1, 8),
    _sample("other_size", 4, 45, 9, 1, 8, cost=Cost.LARGE),
    _sample("two_chunks", 1, 300, 3, 1, 4, cost=Cost.LARGE),
    _sample("many_tokens", 1, 21, 70, 1, 4),
    _sample("width_18", 1, 17, 4, 2, 18),
    _sample("width_36", 1, 5, 2, 1, 36, cost=Cost.LARGE),
    _sample("one_token", 1, 5, 1, 2, 8, cost=Cost.SMALL),
    _sample("one_pixel", 2, 1, 3, 1, 8, cost=Cost.SMALL),
    _sample("width_1", 1, 5, 2, 3, 1, cost=Cost.LARGE),
    _sample("zero_batch", 0, 5, 3, cost=Cost.SMALL),
    _sample("zero_pixels", 2, 0, 3),
    _sample("large_scores", 1, 9, 4, 1, scale=8.0, cost=Cost.LARGE),
    Sample("packed", _packed, cost=Cost.SMALL),
    Sample("channel_major", _channel_major),
    Sample("expanded", _expanded, cost=Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        arguments = dict(zip(("q", "kv", "y", "scale"), _call(make, 2, 6, 3), strict=True))
        arguments.update(change(**arguments))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"q has shape .*\(B, N, heads, head width\)", lambda q, **_: {"q": q[0]}),
    _bad("integers", "q has .*expected float32", lambda q, **_: {"q": q.int()}),
    _bad("no_heads", "q has shape .*at least one head", lambda q, **_: {"q": q[:, :, :0]}),
    _bad("kv_rank", r"kv has shape .*\(B, M, 2, heads", lambda kv, **_: {"kv": kv[:, :, 0]}),
    _bad("kv_width", "kv has shape", lambda kv, **_: {"kv": kv[..., :7]}),
    _bad("kv_dtype", "kv has .*convert", lambda kv, **_: {"kv": kv.half()}),
    _bad("no_token", "kv holds no token", lambda kv, **_: {"kv": kv[:, :0]}),
    _bad("y_shape", "y has shape .*as q", lambda y, **_: {"y": y[:, :5]}),
    _bad("y_dtype", "y has .*convert", lambda y, **_: {"y": y.half()}),
    _bad("infinite_scale", "scale = inf", lambda **_: {"scale": float("inf")}),
)

DECLARATION = Declaration(
    op="token_fusion",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("q", "kv", "y"),
)
