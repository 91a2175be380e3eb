"""Samples of atrous_partition: maps that windows tile, maps that they do not, and no map at all."""

from typing import NamedTuple

from . import BadCall, Cost, Declaration, Maker, Sample


class Size(NamedTuple):
    """A map, and how it is cut into windows."""

    name: str
    shape: tuple[int, int, int, int]  # (B, H, W, C)
    window: int
    dilation: int
    fill: float = 0.0
    cost: Cost = Cost.SMALL


# Of atrous_merge too.
SIZES = (
    Size("stage1_windows", (2, 56, 56, 64), 7, 1, cost=Cost.HUGE),
    Size("stage1_dilated", (2, 56, 56, 64), 7, 4, cost=Cost.HUGE),
    # Larger than the caches: another way of storing.
    Size("streamed", (5, 112, 121, 32), 7, 2, cost=Cost.HUGE),
    Size("one_size", (2, 20, 24, 5), 7, 2, cost=Cost.LARGE),
    Size("other_size", (3, 15, 26, 5), 7, 2, cost=Cost.LARGE),
    Size("even", (2, 14, 14, 8), 7, 2),
    Size("odd_lines", (2, 14, 13, 17), 7, 2),
    Size("ragged", (2, 9, 13, 4), 4, 1, fill=-1.5),
    Size("ragged_dilated", (1, 17, 10, 3), 3, 4, fill=0.25),
    Size("dilation_beyond_map", (1, 5, 3, 4), 2, 8, fill=1.0),
    Size("window_beyond_map", (1, 5, 3, 2), 20, 1),
    Size("window_1", (2, 3, 4, 6), 1, 1),
    Size("window_1_dilated", (1, 5, 6, 2), 1, 3),
    Size("one_pixel", (1, 1, 1, 7), 3, 2, fill=2.0),
    Size("one_channel", (2, 6, 7, 1), 3, 2),
    Size("zero_batch", (0, 7, 7, 4), 7, 1),
    Size("zero_rows", (2, 0, 7, 4), 7, 1),
    Size("zero_channels", (2, 7, 7, 0), 7, 1),
    Size("many_windows", (1, 257, 257, 2), 1, 1, cost=Cost.HUGE),
)


def _sample(size: Size) -> Sample:
    arguments = size.window, size.dilation, size.fill
    return Sample(size.name, lambda make: (make.data(*size.shape), *arguments), size.cost)


def _channels_first(make: Maker):
    """A map as convolutions leave it: channels before rows and columns."""
    return make.data(2, 5, 7, 9).permute(0, 2, 3, 1), 3, 2, 0.0


def _sliced(make: Maker):
    """A crop of a larger map, of some of its channels: no stride is the dense one."""
    return make.data(2, 9, 12, 11)[:, 1:8, 2:11, 3::2], 3, 1, 0.0


def _expanded(make: Maker):
    """One image broadcast over a batch, and one row over all rows, by stride 0."""
    return make.data(1, 1, 8, 6).expand(3, 7, -1, -1), 3, 2, 0.0


SAMPLES = (
    *map(_sample, SIZES),
    Sample("channels_first", _channels_first, Cost.SMALL),
    Sample("sliced", _sliced, Cost.SMALL),
    Sample("expanded", _expanded, Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        x = make.data(1, 6, 6, 2)
        arguments = dict(x=x, window=3, dilation=2, fill=0.0)
        arguments.update(change(x))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"x has shape .*expected 4 dimensions: \(B, H, W, C\)", lambda x: {"x": x[0]}),
    _bad("integers", "x has .*expected float32", lambda x: {"x": x.int()}),
    _bad("window_0", "window = 0; expected", lambda x: {"window": 0}),
    _bad("dilation_0", "dilation = 0; expected", lambda x: {"dilation": 0}),
)

DECLARATION = Declaration(
    op="atrous_partition",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    has_second_derivative=True,
)
