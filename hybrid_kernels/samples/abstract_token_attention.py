"""Samples of abstract_token_attention: MAT's windows shrunk, ragged maps, both kinds of padding."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    size: tuple[int, int, int],
    window: int,
    heads: int = 2,
    d: int = 8,
    padded: bool = False,
    scale: float | None = None,
):
    qkv = make.data(*size, 3, heads, d)
    token = make.parameter(3, heads, d)
    pad_kv = make.parameter(2, heads, d) if padded else None
    return qkv, token, window, d**-0.5 if scale is None else scale, pad_kv


def _sample(name: str, size, window: int, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, size, window, **options), cost)


def _channels_first(make: Maker):
    """qkv as a linear layer over NCHW maps leaves it: channels before rows and columns."""
    qkv, *rest = _call(make, (2, 2, 3), 3)
    stored = qkv.permute(0, 3, 4, 5, 1, 2).contiguous()
    return stored.permute(0, 4, 5, 1, 2, 3), *rest


def _sliced(make: Maker):
    """A crop of a larger map, of some of its heads: no stride is the dense one."""
    qkv, token, window, scale, pad_kv = _call(make, (2, 4, 6), 3, heads=4, d=12, padded=True)
    return (
        qkv[:, 1:3, 3:, :, ::2, 1:11],
        token[:, ::2, 1:11],
        window,
        scale,
        pad_kv[:, 1::2, 2:],
    )


def _expanded(make: Maker):
    """One image broadcast over a batch, and one vector as query, key and value of the token."""
    qkv, token, *rest = _call(make, (1, 2, 3), 3)
    return qkv.expand(2, -1, -1, -1, -1, -1), token[:1].expand(3, -1, -1), *rest


SAMPLES = (
    _sample("stage3", (2, 14, 14), 7, heads=4, d=16, cost=Cost.LARGE),
    _sample("stage4", (1, 7, 7), 7, d=16),
    _sample("dense", (1, 25, 40), 7, heads=2, d=16, cost=Cost.HUGE),
    _sample("one_size", (4, 5, 9), 7, cost=Cost.LARGE),
    _sample("other_size", (5, 6, 16), 7, cost=Cost.LARGE),
    _sample("masked", (1, 2, 3), 2, cost=Cost.SMALL),
    _sample("padded", (1, 1, 3), 2, padded=True, cost=Cost.SMALL),
    _sample("padded_but_tiled", (1, 2, 2), 2, padded=True, cost=Cost.SMALL),
    _sample("beyond_the_map", (1, 2, 3), 7, padded=True),
    _sample("one_pixel", (1, 1, 1), 3, cost=Cost.SMALL),
    _sample("one_row", (1, 1, 5), 4, padded=True),
    _sample("window_1", (1, 1, 2), 1, heads=1, cost=Cost.SMALL),
    _sample("window_9", (1, 9, 8), 9, heads=1, padded=True),
    _sample("window_16", (1, 17, 16), 16, heads=1, cost=Cost.LARGE),
    _sample("zero_batch", (0, 4, 5), 3, cost=Cost.SMALL),
    _sample("zero_rows", (2, 0, 5), 3, padded=True, cost=Cost.SMALL),
    _sample("width_1", (1, 2, 3), 3, d=1, cost=Cost.SMALL),
    _sample("width_18", (1, 7, 8), 7, heads=1, d=18),
    _sample("width_35", (1, 3, 2), 3, heads=1, d=35, padded=True),
    _sample("width_128", (1, 3, 2), 3, heads=1, d=128),
    _sample("large_scores", (1, 3, 2), 3, heads=1, d=16, scale=8.0, padded=True, cost=Cost.SMALL),
    _sample("saturated", (1, 2, 2), 2, d=8, scale=60.0),
    _sample("many_heads", (1, 2, 2), 2, heads=33000, d=1, cost=Cost.HUGE),
    Sample("channels_first", _channels_first),
    Sample("sliced", _sliced),
    Sample("expanded", _expanded, cost=Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        qkv, token, window, scale, pad_kv = _call(make, (1, 4, 4), 3, padded=True)
        arguments = dict(qkv=qkv, token=token, window=window, scale=scale, pad_kv=pad_kv)
        arguments.update(change(qkv, token, pad_kv))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"qkv .*\(B, H, W, 3, heads, head width\)", lambda q, t, p: {"qkv": q[0]}),
    _bad("no_value", r"qkv .*\(B, H, W, 3, heads", lambda q, t, p: {"qkv": q[:, :, :, :2]}),
    _bad("integers", "qkv has .*expected float32", lambda q, t, p: {"qkv": q.int()}),
    _bad("no_heads", "qkv has no heads", lambda q, t, p: {"qkv": q[..., :0, :]}),
    _bad("wide_head", "head width 136", lambda q, t, p: {"qkv": q.repeat(1, 1, 1, 1, 1, 17)}),
    _bad("token_shape", r"token has shape .*\(3, 2, 8\)", lambda q, t, p: {"token": t[:2]}),
    _bad("token_dtype", "token has .*float16.*convert", lambda q, t, p: {"token": t.half()}),
    _bad("pad_shape", r"pad_kv has shape .*\(2, 2, 8\)", lambda q, t, p: {"pad_kv": p[..., :7]}),
    _bad("pad_dtype", "pad_kv has .*float64", lambda q, t, p: {"pad_kv": p.double()}),
    _bad("window_0", "window = 0; expected 1 to 16", lambda q, t, p: {"window": 0}),
    _bad("window_17", "window = 17; expected 1 to 16", lambda q, t, p: {"window": 17}),
    _bad("infinite_scale", "scale = inf", lambda q, t, p: {"scale": float("inf")}),
)

DECLARATION = Declaration(
    op="abstract_token_attention",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("qkv",),
    differentiable=2,
)
