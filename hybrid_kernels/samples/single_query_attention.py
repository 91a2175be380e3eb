"""Samples of single_query_attention: the papers' shapes shrunk, and every way to leave keys out."""

import torch

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    batch: int,
    tokens: int,
    queries: int = 1,
    heads: int = 2,
    d: int = 16,
    dv: int | None = None,
    shared: bool = False,
    excluded: int = 0,
    scale: float | None = None,
):
    dv = d if dv is None else dv
    shape = (queries, heads, d)
    query = make.data(*shape) if shared else make.data(batch, *shape)
    k, v = make.data(batch, tokens, heads, d), make.data(batch, tokens, heads, dv)
    exclude = every_third(batch, excluded, tokens, k.device) if excluded else None
    return query, k, v, d**-0.5 if scale is None else scale, exclude


def every_third(batch: int, count: int, tokens: int, device: torch.device) -> torch.Tensor:
    """Distinct indices that differ from image to image."""
    starts = torch.arange(batch, device=device)[:, None]
    return ((torch.arange(count, device=device) * 3 + starts) % tokens).to(torch.int32)


def _sample(name: str, *sizes, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, *sizes, **options), cost)


def _packed(make: Maker):
    """Keys and values as slices of one projection, which the queries of a crop attend to."""
    kv = make.data(2, 30, 2, 2, 8)
    k, v = kv[:, 3:24].unbind(2)
    return make.data(2, 5, 2, 8)[:, ::2], k, v, 8**-0.5, None


def _channel_major(make: Maker):
    """Keys and values with the tokens side by side, as an NCHW map has them."""
    query, *rest = _call(make, 2, 21, heads=2, d=12, queries=2)
    k, v = (t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for t in rest[:2])
    return query, k, v, *rest[2:]


def _expanded(make: Maker):
    """One image of tokens under a batch of queries, by stride 0."""
    query, k, v, scale, _ = _call(make, 1, 9, d=8)
    query = make.data(3, 2, 2, 8)
    return query, k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1), scale, None


SAMPLES = (
    _sample("single", 2, 196, heads=4, d=16, excluded=49, cost=Cost.LARGE),
    _sample("group", 2, 300, queries=8, heads=2, d=16, shared=True, cost=Cost.LARGE),
    _sample("pooling", 1, 1000, queries=1, heads=1, d=32, shared=True, cost=Cost.LARGE),
    _sample("class_token", 2, 50, heads=3, d=64),
    _sample("one_size", 3, 20, queries=2, heads=2, d=8, excluded=4),
    _sample("other_size", 4, 45, queries=2, heads=2, d=8, excluded=11),
    _sample("one_key", 2, 1, queries=2, d=8, cost=Cost.SMALL),
    _sample("one_key_left", 2, 4, d=8, excluded=3, cost=Cost.SMALL),
    _sample("block_excluded", 1, 300, d=8, excluded=299, cost=Cost.LARGE),
    _sample("zero_batch", 0, 5, queries=3, d=8, shared=True, excluded=2, cost=Cost.SMALL),
    _sample("sixteen_queries", 1, 7, queries=16, d=8, cost=Cost.SMALL),
    _sample("shared", 3, 6, queries=2, d=8, shared=True, excluded=1, cost=Cost.SMALL),
    _sample("width_1", 1, 5, d=1, cost=Cost.SMALL),
    _sample("width_12", 1, 40, queries=3, heads=2, d=12, excluded=7),
    _sample("width_18_36", 1, 33, queries=5, heads=1, d=18, dv=36),
    _sample("width_128", 1, 19, queries=2, heads=1, d=128),
    _sample("narrow_values", 1, 9, d=32, dv=5, cost=Cost.SMALL),
    _sample("large_scores", 1, 9, d=16, scale=8.0, cost=Cost.SMALL),
    _sample("negative_scale", 1, 5, d=8, scale=-0.3, cost=Cost.SMALL),
    Sample("packed", _packed, cost=Cost.SMALL),
    Sample("channel_major", _channel_major),
    Sample("expanded", _expanded, cost=Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        query, k, v, scale, exclude = _call(make, 2, 6, queries=3, d=8, dv=6, excluded=2)
        arguments = dict(query=query, k=k, v=v, scale=scale, exclude=exclude)
        arguments.update(change(query, k, v, exclude))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"k has shape .*\(B, N, heads, head width\)", lambda q, k, v, x: {"k": k[0]}),
    _bad("integers", "k has .*expected float32", lambda q, k, v, x: {"k": k.int()}),
    _bad("query_rank", "query has shape .*or", lambda q, k, v, x: {"query": q[0, 0]}),
    _bad("query_dtype", "query has .*convert", lambda q, k, v, x: {"query": q.half()}),
    _bad("query_width", "query has shape", lambda q, k, v, x: {"query": q[..., :7]}),
    _bad(
        "many_queries",
        "query has 18 queries; expected 1 to 16; use multiscale_attention",
        lambda q, k, v, x: {"query": q.repeat(1, 6, 1, 1)},
    ),
    _bad("value_count", "v has shape", lambda q, k, v, x: {"v": v[:, :5]}),
    _bad("no_key", "k holds no key", lambda q, k, v, x: {"k": k[:, :0], "v": v[:, :0]}),
    _bad("exclude_rank", "exclude has shape", lambda q, k, v, x: {"exclude": x[0]}),
    _bad("exclude_dtype", "exclude holds no int32", lambda q, k, v, x: {"exclude": x.float()}),
    _bad(
        "exclude_all",
        "exclude has 6 indices .*so that a key is left",
        lambda q, k, v, x: {"exclude": x.repeat(1, 3)},
    ),
    _bad("wide_head", "head width 136", lambda q, k, v, x: {"k": k.repeat(1, 1, 1, 17)}),
    _bad("infinite_scale", "scale = inf", lambda q, k, v, x: {"scale": float("inf")}),
)

DECLARATION = Declaration(
    op="single_query_attention",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("query", "k", "v"),
)
