"""Samples of pool_cat: stage maps, windows that overlap or repeat, every kind of edge."""

from . import BadCall, Cost, Declaration, Maker, Sample

Size = tuple[int, int, int]  # rows, columns, channels of a map


def _call(make: Maker, batch: int, maps: list[Size], height: int, width: int):
    return [make.data(batch, *size) for size in maps], height, width


def _sample(name: str, *call, cost=Cost.MEDIUM) -> Sample:
    return Sample(name, lambda make: _call(make, *call), cost)


def _small(name: str, *call) -> Sample:
    return _sample(name, *call, cost=Cost.SMALL)


def _channels_first(make: Maker):
    """Maps as convolutions leave them."""
    xs, height, width = _call(make, 2, [(5, 4, 6), (3, 2, 5)], 3, 2)
    return [x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for x in xs], height, width


def _sliced(make: Maker):
    """Every second pixel and the first channels of a larger map, and one pixel broadcast."""
    large, small = make.data(2, 8, 6, 9), make.data(2, 1, 1, 4)
    return [large[:, ::2, ::2, :5], small.expand(-1, 3, 2, -1)], 2, 2


SAMPLES = (
    _sample("stages", 2, [(8, 8, 16), (4, 4, 24), (2, 2, 72)], 2, 2),
    _sample("large", 2, [(56, 48, 64), (28, 24, 80)], 7, 6, cost=Cost.HUGE),
    _sample("one_size", 2, [(9, 7, 5), (4, 3, 6)], 3, 2),
    _sample("other_size", 4, [(8, 10, 5), (5, 6, 6)], 3, 2),
    _small("overlap", 1, [(7, 5, 3)], 4, 3),
    _small("copy", 2, [(3, 4, 8)], 3, 4),
    _small("enlarged", 1, [(2, 3, 4), (5, 1, 2)], 3, 4),
    _small("to_one_pixel", 2, [(4, 3, 5)], 1, 1),
    _small("one_pixel", 1, [(1, 1, 7)], 1, 1),
    _small("eight_maps", 1, [(2, 2, c) for c in range(1, 9)], 1, 2),
    _small("zero_batch", 0, [(3, 3, 4)], 2, 2),
    Sample("channels_first", _channels_first, cost=Cost.SMALL),
    Sample("sliced", _sliced, cost=Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        xs, height, width = _call(make, 2, [(4, 4, 8), (2, 2, 4)], 2, 2)
        return tuple((dict(xs=xs, height=height, width=width) | change(xs)).values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("nine_maps", "xs has 9 maps; expected 1 to 8", lambda xs: {"xs": xs[:1] * 9}),
    _bad("rank", r"xs\[1\] has shape .*\(B, H, W, C\)", lambda xs: {"xs": [xs[0], xs[1][0]]}),
    _bad("no_pixel", r"xs\[0\] has shape .*at least 1", lambda xs: {"xs": [xs[0][:, :0]]}),
    _bad("batch", r"xs\[1\] has shape .*batch of 2", lambda xs: {"xs": [xs[0], xs[1][:1]]}),
    _bad("integers", r"xs\[0\] has .*expected float32", lambda xs: {"xs": [xs[0].int()]}),
    _bad("dtypes", r"xs\[1\] has .*float16.*convert", lambda xs: {"xs": [xs[0], xs[1].half()]}),
    _bad("height", "height = 0; expected 1 or more", lambda xs: {"height": 0}),
    _bad("width", "width = -2; expected 1 or more", lambda xs: {"width": -2}),
)

DECLARATION = Declaration(
    op="pool_cat",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
)
