"""Samples of atrous_merge: the windows of every kind of map, also strided."""

from . import BadCall, Cost, Declaration, Maker, Sample
from .atrous_partition import SIZES, Size


def _call(make: Maker, shape: tuple[int, int, int, int], window: int, dilation: int):
    B, H, W, C = shape
    side = window * dilation
    windows = dilation**2 * -(-H // side) * -(-W // side)
    return make.data(B, windows, window**2, C), H, W, window, dilation


def _sample(size: Size) -> Sample:
    return Sample(
        size.name, lambda make: _call(make, size.shape, size.window, size.dilation), size.cost
    )


def _channels_first(make: Maker):
    """Channels before windows and slots, as after a transposed product."""
    windows, *rest = _call(make, (2, 7, 9, 5), 3, 2)
    return windows.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), *rest


def _sliced(make: Maker):
    """Some of the channels of wider windows."""
    windows, *rest = _call(make, (2, 7, 9, 11), 3, 1)
    return windows[..., 3::2], *rest


def _expanded(make: Maker):
    """One image and one slot, broadcast over a batch and over all slots by stride 0."""
    windows, *rest = _call(make, (1, 6, 5, 4), 3, 2)
    return windows[:, :, :1].expand(3, -1, 9, -1), *rest


SAMPLES = (
    *map(_sample, SIZES),
    Sample("channels_first", _channels_first, Cost.SMALL),
    Sample("sliced", _sliced, Cost.SMALL),
    Sample("expanded", _expanded, Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        windows, height, width, window, dilation = _call(make, (1, 6, 6, 2), 3, 2)
        arguments = dict(
            windows=windows, height=height, width=width, window=window, dilation=dilation
        )
        arguments.update(change(windows))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", "windows has shape .*expected 4 dimensions", lambda w: {"windows": w[0]}),
    _bad("integers", "windows has .*expected float32", lambda w: {"windows": w.int()}),
    _bad("count", r"expected \(B, 4, 9, C\) for a 6 x 6 map", lambda w: {"windows": w[:, 1:]}),
    _bad("slots", r"expected \(B, 4, 9, C\) for a 6 x 6 map", lambda w: {"windows": w[:, :, 1:]}),
    _bad("other_height", r"expected \(B, 8, 9, C\) for a 7 x 6", lambda w: {"height": 7}),
    _bad("negative_height", "height = -1; expected", lambda w: {"height": -1}),
    _bad("negative_width", "width = -2; expected", lambda w: {"width": -2}),
    _bad("window_0", "window = 0; expected", lambda w: {"window": 0}),
    _bad("dilation_0", "dilation = 0; expected", lambda w: {"dilation": 0}),
)

DECLARATION = Declaration(
    op="atrous_merge",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    has_second_derivative=True,
)
