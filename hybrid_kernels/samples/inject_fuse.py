"""Samples of inject_fuse: enlargements by whole and ragged factors, one size, reductions."""

from collections.abc import Callable

from torch import Tensor

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import channels_first, expanded, sliced

Map = Callable[..., Tensor]

NAMES = ("local", "logit", "offset")


def _call(make: Maker, fine, coarse, local: Map = Maker.data, coarse_map: Map = Maker.data):
    B, *_, C = fine
    logit, offset = (coarse_map(make, B, *coarse, C) for _ in range(2))
    return local(make, *fine), 2 * logit, offset


def _sample(name: str, fine, coarse, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, fine, coarse, **options), cost)


def _channels_first(make: Maker, *shape: int) -> Tensor:
    return channels_first(make.data(*shape))


SAMPLES = (
    _sample("stage1", (2, 56, 56, 64), (7, 7), cost=Cost.HUGE),
    _sample("bands", (1, 75, 41, 65), (19, 11), cost=Cost.HUGE),
    _sample("many_images", (20, 6, 5, 16), (3, 2), cost=Cost.HUGE),
    _sample("twice", (2, 6, 4, 5), (3, 2), cost=Cost.SMALL),
    _sample("ragged", (1, 5, 7, 8), (2, 3), cost=Cost.SMALL),
    _sample("smaller", (1, 2, 3, 8), (5, 4), cost=Cost.SMALL),
    _sample("zero_batch", (0, 4, 4, 8), (2, 2), cost=Cost.SMALL),
    _sample("one_size", (2, 6, 8, 24), (3, 4)),
    _sample("other_size", (3, 5, 9, 24), (2, 7)),
    _sample("one_coarse_pixel", (1, 4, 3, 16), (1, 1)),
    _sample("same_size", (1, 4, 5, 7), (4, 5), cost=Cost.LARGE),
    _sample("one_pixel", (1, 1, 1, 16), (3, 2), cost=Cost.LARGE),
    _sample("sliced", (2, 6, 4, 18), (3, 2), local=sliced, coarse_map=sliced, cost=Cost.LARGE),
    _sample("channels_first", (2, 6, 4, 6), (3, 2), local=_channels_first, cost=Cost.LARGE),
    _sample("expanded", (1, 8, 5, 9), (3, 2), local=expanded, cost=Cost.LARGE),
    _sample("rows_apart", (1, 3, 3, 4), (11, 9), cost=Cost.LARGE),
)


_bad = changed_calls(NAMES, lambda make: _call(make, (2, 4, 4, 8), (2, 3)))


BAD_CALLS = (
    _bad("rank", r"local has shape .*\(B, H, W, C\)", local=lambda x: x[0]),
    _bad("no_pixel", "logit has shape .*at least one pixel", logit=lambda x: x[:, :0]),
    _bad("integers", "local has .*expected float32", local=lambda x: x.int()),
    _bad("logit_batch", r"logit has shape .*\(2, 2, 3, 8\)", logit=lambda x: x[:1]),
    _bad("logit_width", r"logit has shape .*\(2, 2, 3, 8\)", logit=lambda x: x[..., :7]),
    _bad("offset_size", r"offset has shape .*\(2, 2, 3, 8\)", offset=lambda x: x[:, :1]),
    _bad("offset_dtype", "offset has .*float16", offset=lambda x: x.half()),
)

DECLARATION = Declaration(
    op="inject_fuse",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
)
