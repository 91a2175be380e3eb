"""Samples of partial_combine: few and many foreground tokens, in any order, and strided tokens."""

import torch
from torch import Tensor

from . import BadCall, Cost, Declaration, Maker, Sample


def scattered(make: Maker, batch: int, tokens: int, count: int) -> Tensor:
    """Distinct tokens in no order, other ones for every image; from 0 to tokens - 1."""
    start = torch.arange(batch, device=make.device)[:, None] * 5
    step = next(s for s in (7, 11, 13) if tokens % s)  # prime to the tokens: all are reached
    return ((torch.arange(count, device=make.device) * step + start) % tokens).int()


def _call(make: Maker, batch: int, tokens: int, channels: int, foreground: int):
    index = scattered(make, batch, tokens, foreground)
    x, update = make.data(batch, tokens, channels), make.data(batch, channels)
    return x, update, make.data(batch, foreground, channels), index


def _sample(name: str, *sizes: int, cost=Cost.MEDIUM) -> Sample:
    return Sample(name, lambda make: _call(make, *sizes), cost)


def _strided(make: Maker):
    """Every second token of a map with channels first; foreground without its first row."""
    _, update, _, index = _call(make, 2, 9, 6, 4)
    x = make.data(2, 6, 18).transpose(1, 2)[:, ::2]
    return x, update, make.data(2, 5, 6)[:, 1:], index.long()


def _expanded(make: Maker):
    """One token broadcast over the image, one update and one foreground over the batch."""
    index = scattered(make, 1, 8, 3).expand(2, -1)
    x, update = make.data(2, 1, 5).expand(-1, 8, -1), make.data(1, 5).expand(2, -1)
    return x, update, make.data(1, 3, 5).expand(2, -1, -1), index


SAMPLES = (
    _sample("stage1", 2, 3136, 64, 49, cost=Cost.HUGE),
    _sample("stage3", 2, 196, 64, 49, cost=Cost.LARGE),
    _sample("streamed", 3, 11000, 64, 200, cost=Cost.HUGE),
    _sample("two_chunks", 1, 300, 8, 40),
    _sample("one_size", 2, 20, 24, 6),
    _sample("other_size", 3, 33, 24, 9),
    _sample("all_foreground", 2, 4, 8, 4, cost=Cost.SMALL),
    _sample("one_token", 2, 1, 8, 1, cost=Cost.SMALL),
    _sample("one_channel", 2, 6, 1, 2, cost=Cost.SMALL),
    _sample("channels_35", 1, 9, 35, 2, cost=Cost.SMALL),
    _sample("zero_batch", 0, 5, 8, 2, cost=Cost.SMALL),
    _sample("zero_channels", 2, 5, 0, 2, cost=Cost.SMALL),
    Sample("strided", _strided, cost=Cost.SMALL),
    Sample("expanded", _expanded, cost=Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        names = ("x", "update", "foreground", "index")
        arguments = dict(zip(names, _call(make, 2, 6, 8, 3), strict=True))
        arguments.update(change(**arguments))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, N, C\)", lambda x, **_: {"x": x[0]}),
    _bad("integers", "x has .*expected float32", lambda x, **_: {"x": x.int()}),
    _bad("update_shape", r"update has shape .*\(B, C\)", lambda x, **_: {"update": x}),
    _bad("update_dtype", "update has .*convert", lambda update, **_: {"update": update.half()}),
    _bad(
        "foreground_shape",
        r"foreground has shape .*\(B, n, C\)",
        lambda foreground, **_: {"foreground": foreground[:, :2]},
    ),
    _bad(
        "foreground_dtype",
        "foreground has .*convert",
        lambda foreground, **_: {"foreground": foreground.half()},
    ),
    _bad("index_rank", "index has shape", lambda index, **_: {"index": index[0]}),
    _bad("no_index", "index has shape .*1 <= n <= 6", lambda index, **_: {"index": index[:, :0]}),
    _bad("index_dtype", "index holds no int32", lambda index, **_: {"index": index.float()}),
)

DECLARATION = Declaration(
    op="partial_combine",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
)
