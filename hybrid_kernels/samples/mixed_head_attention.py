"""Samples of mixed_head_attention: few to many tokens, heads and mixed heads of every number."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    batch: int,
    tokens: int,
    heads: int = 2,
    d: int = 4,
    mixed: int | None = None,
    scale: float | None = None,
):
    q, k, v = (make.data(batch, tokens, heads, d) for _ in range(3))
    return q, k, v, *_layers(make, heads, mixed), d**-0.5 if scale is None else scale


def _layers(make: Maker, heads: int, mixed: int | None = None):
    """Of a size that keeps mixed logits about as large as scores."""
    mixed = 2 * heads if mixed is None else mixed
    w1, b1 = make.data(mixed, heads) * heads**-0.5, make.data(mixed)
    return w1, b1, make.data(heads, mixed) * mixed**-0.5, make.data(heads)


def _sample(name: str, *sizes: int, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, *sizes, **options), cost)


def _packed(make: Maker):
    """Slices of one projection, the layers as parts of larger ones."""
    q, k, v = make.data(2, 5, 3, 2, 8).unbind(2)
    w1, b1, w2, b2 = _layers(make, 4)
    return q, k, v, w1[::2, ::2], b1[::2], w2.t()[::2, :2].t(), b2[2:], 8**-0.5


def _channel_major(make: Maker):
    """Queries with the tokens side by side, and values that are the keys, by stride 0."""
    q, k, _, *rest = _call(make, 2, 7, 2, 6)
    return q.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), k, k[:1].expand_as(k), *rest


SAMPLES = (
    _sample("b1_stage3", 2, 50, 8, 16, cost=Cost.HUGE),
    _sample("dense", 1, 300, 4, 16, cost=Cost.HUGE),
    _sample("many_heads", 1, 33, 20, 12, cost=Cost.HUGE),
    _sample("one_size", 3, 7, 2, 5),
    _sample("other_size", 6, 9, 2, 5, cost=Cost.LARGE),
    _sample("wide", 1, 9, 1, 40, cost=Cost.LARGE),
    _sample("narrow", 1, 6, 3, 1, cost=Cost.LARGE),
    _sample("five_heads", 1, 19, 5, 3),
    _sample("fewer_mixed", 1, 5, 3, 4, mixed=1, cost=Cost.SMALL),
    _sample("one_token", 2, 1, cost=Cost.LARGE),
    _sample("zero_batch", 0, 5, cost=Cost.SMALL),
    _sample("large_scores", 1, 9, scale=3.0, cost=Cost.LARGE),
    Sample("packed", _packed),
    Sample("channel_major", _channel_major, Cost.LARGE),
)


def _bad(name: str, message: str, change) -> BadCall:
    names = ("q", "k", "v", "w1", "b1", "w2", "b2", "scale")

    def build(make: Maker):
        arguments = dict(zip(names, _call(make, 2, 6), strict=True))
        arguments.update(change(**arguments))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"q has shape .*\(B, M, heads, head width\)", lambda q, **_: {"q": q[0]}),
    _bad("integers", "q has .*expected float32", lambda q, **_: {"q": q.int()}),
    _bad("no_token", "q has shape .*at least one token", lambda q, **_: {"q": q[:, :0]}),
    _bad("k_shape", "k has shape .*as q", lambda k, **_: {"k": k[:, :5]}),
    _bad("v_dtype", "v has .*convert", lambda v, **_: {"v": v.half()}),
    _bad("w1_shape", r"w1 has shape .*\(mixed heads, heads\)", lambda w1, **_: {"w1": w1[:, :1]}),
    _bad("no_mixed_head", "w1 has shape .*at least one mixed", lambda w1, **_: {"w1": w1[:0]}),
    _bad("b1_shape", "b1 has shape", lambda b1, **_: {"b1": b1[:3]}),
    _bad("w2_shape", r"w2 has shape .*\(heads, mixed heads\)", lambda w2, **_: {"w2": w2.t()}),
    _bad("w2_dtype", "w2 has .*convert", lambda w2, **_: {"w2": w2.double()}),
    _bad("b2_shape", "b2 has shape", lambda b2, **_: {"b2": b2[:1]}),
    _bad("infinite_scale", "scale = inf", lambda **_: {"scale": float("inf")}),
)

DECLARATION = Declaration(
    op="mixed_head_attention",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("q", "k", "v", "w1", "b1", "w2", "b2"),
)
