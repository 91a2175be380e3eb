"""Samples of single_query_pool: absorbed queries of MCGA and PartialFormer, shrunk."""

from . import BadCall, Cost, Declaration, Maker, Sample
from .single_query_attention import every_third


def _call(
    make: Maker,
    batch: int,
    tokens: int,
    queries: int,
    channels: int,
    shared: bool = False,
    excluded: int = 0,
    scale: float | None = None,
):
    query = make.data(queries, channels) if shared else make.data(batch, queries, channels)
    x = make.data(batch, tokens, channels)
    exclude = every_third(batch, excluded, tokens, x.device) if excluded else None
    return query, x, channels**-0.5 if scale is None else scale, exclude


def _sample(name: str, *sizes, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, *sizes, **options), cost)


def _strided(make: Maker):
    """Every second query, tokens of a crop with some of their channels, transposed in memory."""
    x = make.data(2, 24, 30).transpose(1, 2)[:, 3:24, :20]
    return make.data(2, 5, 20)[:, ::2], x, 0.3, None


SAMPLES = (
    _sample("group", 2, 300, 16, 32, shared=True, cost=Cost.LARGE),
    _sample("single", 2, 70, 4, 64, excluded=17),
    _sample("one_size", 3, 20, 2, 8, excluded=4),
    _sample("other_size", 4, 45, 2, 8, excluded=11),
    _sample("one_token", 2, 1, 2, 8, cost=Cost.SMALL),
    _sample("zero_batch", 0, 5, 3, 8, shared=True, excluded=2, cost=Cost.SMALL),
    _sample("shared", 3, 6, 5, 12, shared=True, excluded=1, scale=-0.3, cost=Cost.SMALL),
    _sample("width_1", 1, 5, 1, 1, cost=Cost.SMALL),
    _sample("width_128", 1, 19, 11, 128),
    Sample("strided", _strided),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        query, x, scale, exclude = _call(make, 2, 6, 3, 8, excluded=2)
        arguments = dict(query=query, x=x, scale=scale, exclude=exclude)
        arguments.update(change(query, x, exclude))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, N, channels\)", lambda q, x, e: {"x": x[0]}),
    _bad("integers", "x has .*expected float32", lambda q, x, e: {"x": x.int()}),
    _bad("query_rank", "query has shape .*or", lambda q, x, e: {"query": q[0, 0]}),
    _bad("query_dtype", "query has .*convert", lambda q, x, e: {"query": q.half()}),
    _bad("query_width", "query has shape", lambda q, x, e: {"query": q[..., :7]}),
    _bad(
        "many_queries",
        "query has 18 queries; expected 1 to 16",
        lambda q, x, e: {"query": q.repeat(1, 6, 1)},
    ),
    _bad("wide", "x has 136 channels", lambda q, x, e: {"x": x.repeat(1, 1, 17)}),
    _bad("no_token", "x holds no token", lambda q, x, e: {"x": x[:, :0]}),
    _bad("exclude_rank", "exclude has shape", lambda q, x, e: {"exclude": e[0]}),
    _bad(
        "exclude_all",
        "exclude has 6 indices .*so that a key is left",
        lambda q, x, e: {"exclude": e.repeat(1, 3)},
    ),
    _bad("infinite_scale", "scale = inf", lambda q, x, e: {"scale": float("inf")}),
)

DECLARATION = Declaration(
    op="single_query_pool",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("query", "x"),
)
