"""Samples of propagate_cat: both branches of EMSNet, cut tokens, pixels without a token."""

from . import Cost, Declaration, Maker, Sample, changed_calls
from ._maps import channels_first, sliced

Part = tuple[int, int]  # side of the patches, 0 of a full-size map; and channels


def _call(make: Maker, batch: int, height: int, width: int, parts: list[Part], floor: bool = False):
    maps, kernels = [], []
    for p, C in parts:
        grid = (height, width)
        if p:
            grid = (n // p if floor else -(-n // p) for n in grid)
            kernels.append(make.parameter(p, p, C))
        maps.append(make.data(batch, *grid, C))
    return maps, kernels, [p > 0 for p, _ in parts], height, width


def _sample(name: str, *call, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, *call, **options), cost)


def _small(name: str, *call, **options) -> Sample:
    return _sample(name, *call, cost=Cost.SMALL, **options)


def _strided(make: Maker):
    """Tokens as convolutions leave them, and channels and pixels of a larger map."""
    maps, *others = _call(make, 2, 5, 6, [(2, 3), (0, 7)])
    return [channels_first(maps[0]), sliced(make, *maps[1].shape)], *others


STATIC = [(2, 16), (0, 16), (4, 16)]

SAMPLES = (
    _sample("static", 2, 56, 56, STATIC, cost=Cost.HUGE),
    _sample("dynamic", 3, 14, 13, [(4, 17), (6, 40)], cost=Cost.HUGE),
    _sample("one_size", 3, 7, 11, [(2, 5), (0, 8)]),
    _sample("other_size", 4, 5, 9, [(2, 5), (0, 8)]),
    _sample("static_cut", 1, 5, 7, [(2, 5), (0, 4), (4, 6)]),
    _sample("maps_alone", 1, 2, 3, [(0, 3), (0, 5)]),  # whose gradients, slices, have their own
    _small("tokens", 2, 5, 3, [(2, 4)]),
    _small("floor", 1, 5, 7, [(2, 3), (3, 2)], floor=True),
    _small("one_pixel", 2, 1, 1, [(4, 3), (0, 2)]),
    _small("side_of_one", 1, 3, 2, [(1, 3)]),
    _small("zero_batch", 0, 4, 4, [(2, 3), (0, 2)]),
    Sample("strided", _strided, Cost.SMALL),
)


_bad = changed_calls(
    ("maps", "kernels", "is_tokens", "height", "width"),
    lambda make: _call(make, 2, 4, 6, [(2, 3), (0, 2)]),
)


BAD_CALLS = (
    _bad("nine_maps", "maps has 9 entries; expected 1 to 8", maps=lambda maps: maps[:1] * 9),
    _bad("rank", r"maps\[0\] has shape .*\(B, H, W, C\)", maps=lambda m: [m[0][0], m[1]]),
    _bad("size", r"maps\[1\] has shape .*\(B, height, width, C\)", maps=lambda m: [m[0], m[0]]),
    _bad("tokens", r"maps\[0\] has shape .*4 / 2 rows", maps=lambda m: [m[0][:, :1, :1], m[1]]),
    _bad("batch", r"maps\[1\] has shape .*\(2, 4, 6, 2\)", maps=lambda m: [m[0], m[1][:1]]),
    _bad("integers", r"maps\[0\] has .*expected float32", maps=lambda m: [m[0].int(), m[1]]),
    _bad("dtypes", r"maps\[1\] has .*float16.*convert", maps=lambda m: [m[0], m[1].half()]),
    _bad("kernel_count", "kernels has 0 entries; expected one", kernels=lambda _: []),
    _bad("kernel", r"kernels\[0\] has shape .*\(p, p, C\)", kernels=lambda k: [k[0][:, :1]]),
    _bad("flags", "is_tokens has 1 entries; expected one", is_tokens=lambda _: [True]),
    _bad("height", "height = 0; expected 1 or more", height=lambda _: 0),
    _bad("width", "width = -2; expected 1 or more", width=lambda _: -2),
)

DECLARATION = Declaration(
    op="propagate_cat",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("maps",),
)
