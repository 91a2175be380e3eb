"""Samples of multiscale_attention: the papers' shapes shrunk, and every kind of segment."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    batch: int,
    queries: int,
    keys: tuple[int, ...],
    heads: int = 2,
    d: int = 16,
    dv: int | None = None,
    scale: float | None = None,
):
    dv = d if dv is None else dv
    q = make.data(batch, queries, heads, d)
    ks = [make.data(batch, m, heads, d) for m in keys]
    vs = [make.data(batch, m, heads, dv) for m in keys]
    return q, ks, vs, d**-0.5 if scale is None else scale


def _sample(name: str, *sizes, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, *sizes, **options), cost)


def _channel_major(make: Maker):
    """Everything as 1x1 convolutions over NCHW maps leave it: channels before tokens."""
    q, ks, vs, scale = _call(make, 2, 20, (20, 6), heads=3, d=12, dv=24)

    def stored(tensor):
        return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    return stored(q), [stored(k) for k in ks], [stored(v) for v in vs], scale


def _packed(make: Maker):
    """Slices of one projection: queries, keys and values of a token side by side."""
    qkv = make.data(2, 13, 3, 2, 8)
    q, k, v = qkv.unbind(2)
    return q, [k], [v], 8**-0.5


def _sliced(make: Maker):
    """Some tokens, heads and channels of larger tensors: no stride is the dense one."""
    q, ks, vs, scale = _call(make, 3, 17, (9, 11), heads=4, d=20, dv=12)
    ks, vs = [k[1:, :, ::2, 3:18] for k in ks], [v[1:, :, 2:, 1:] for v in vs]
    return q[1:, ::2, 1:3, 3:18], ks, vs, scale


def _expanded(make: Maker):
    """One image and one head of keys and values, broadcast by stride 0."""
    q, ks, vs, scale = _call(make, 1, 10, (7,), heads=1, d=8)
    q = make.data(3, 10, 2, 8)
    return q, [k.expand(3, -1, 2, -1) for k in ks], [v.expand(3, -1, 2, -1) for v in vs], scale


SAMPLES = (
    _sample("mscsa", 2, 49, (49, 16, 9), heads=3, d=24, dv=48),
    _sample("mscsa_dense", 1, 250, (250, 65, 32), heads=2, d=35, dv=70, cost=Cost.LARGE),
    _sample("region", 2, 49, (49,), heads=3, d=64),
    _sample("class_token", 1, 50, (17,), heads=2, d=64),
    _sample("long", 1, 200, (400,), heads=1, d=32, cost=Cost.LARGE),
    _sample("few_queries", 1, 3, (333,), heads=1, d=24, cost=Cost.LARGE),
    _sample("one_size", 3, 21, (18, 7), heads=2, d=8),
    _sample("other_size", 4, 35, (25, 11), heads=2, d=8),
    _sample("one_query", 2, 1, (5,), d=8, cost=Cost.SMALL),
    _sample("one_key", 2, 4, (1,), d=8, cost=Cost.SMALL),
    _sample("one_pixel", 1, 1, (1, 1, 1), d=12, dv=24, cost=Cost.SMALL),
    _sample("three_segments", 2, 6, (6, 3, 2), d=12, dv=24, cost=Cost.SMALL),
    _sample("empty_segment", 2, 5, (4, 0, 3), d=8, cost=Cost.SMALL),
    _sample("zero_batch", 0, 5, (5, 3), d=8, cost=Cost.SMALL),
    _sample("zero_queries", 2, 0, (5, 3), d=8, cost=Cost.SMALL),
    _sample("width_1", 1, 5, (6,), d=1, cost=Cost.SMALL),
    _sample("width_14", 1, 16, (16, 4), heads=1, d=14, dv=28),
    _sample("width_15", 1, 17, (33,), heads=3, d=15, dv=30),
    _sample("width_18", 1, 9, (12,), heads=2, d=18),
    _sample("width_22_44", 1, 12, (12, 6), heads=2, d=22, dv=44),
    _sample("width_52_104", 1, 18, (18, 9), heads=1, d=52, dv=104),
    _sample("width_128", 1, 17, (19,), heads=1, d=128),
    _sample("narrow_values", 1, 7, (9,), d=32, dv=5, cost=Cost.SMALL),
    _sample("large_scores", 1, 9, (9,), d=16, scale=8.0, cost=Cost.SMALL),
    _sample("saturated", 1, 9, (9,), d=16, scale=60.0, cost=Cost.SMALL),
    _sample("negative_scale", 1, 5, (5,), d=8, scale=-0.3, cost=Cost.SMALL),
    _sample("many_heads", 2, 3, (3,), heads=33000, d=1, cost=Cost.HUGE),
    Sample("channel_major", _channel_major),
    Sample("packed", _packed, cost=Cost.SMALL),
    Sample("sliced", _sliced),
    Sample("expanded", _expanded, cost=Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        q, ks, vs, scale = _call(make, 2, 5, (4, 3), d=8, dv=6)
        arguments = dict(q=q, ks=ks, vs=vs, scale=scale)
        arguments.update(change(q, ks, vs))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"q has shape .*\(B, N, heads, head width\)", lambda q, ks, vs: {"q": q[0]}),
    _bad("integers", "q has .*expected float32", lambda q, ks, vs: {"q": q.int()}),
    _bad("no_segment", "ks has 0 segments; expected 1 to 3", lambda q, ks, vs: {"ks": []}),
    _bad("four_segments", "ks has 4 .*torch.cat", lambda q, ks, vs: {"ks": ks * 2, "vs": vs * 2}),
    _bad("unpaired", "vs has 1 segments; expected 2", lambda q, ks, vs: {"vs": vs[:1]}),
    _bad("key_width", r"ks\[1\] has shape", lambda q, ks, vs: {"ks": [ks[0], ks[1][..., :7]]}),
    _bad("value_count", r"vs\[0\] has shape", lambda q, ks, vs: {"vs": [vs[0][:, :3], vs[1]]}),
    _bad("heads", r"ks\[0\] has shape", lambda q, ks, vs: {"ks": [ks[0][:, :, :1], ks[1]]}),
    _bad("key_dtype", r"ks\[0\] has .*convert", lambda q, ks, vs: {"ks": [ks[0].half(), ks[1]]}),
    _bad(
        "no_key",
        "hold no key for the 5 queries",
        lambda q, ks, vs: {"ks": [k[:, :0] for k in ks], "vs": [v[:, :0] for v in vs]},
    ),
    _bad("wide_head", "head width 136", lambda q, ks, vs: {"q": q.repeat(1, 1, 1, 17)}),
    _bad("infinite_scale", "scale = inf", lambda q, ks, vs: {"scale": float("inf")}),
)

DECLARATION = Declaration(
    op="multiscale_attention",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("q", "ks", "vs"),
)
