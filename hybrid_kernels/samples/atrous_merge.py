"""Samples of atrous_merge: the windows of every kind of map, also strided."""

from . import BadCall, Declaration, Maker, Sample


def _call(make: Maker, shape: tuple[int, int, int, int], window: int, dilation: int):
    B, H, W, C = shape
    side = window * dilation
    windows = dilation**2 * -(-H // side) * -(-W // side)
    return make.data(B, windows, window**2, C), H, W, window, dilation


def _sample(
    name: str,
    shape: tuple[int, int, int, int],
    window: int,
    dilation: int,
    *,
    small: bool = True,
    large: bool = False,
) -> Sample:
    return Sample(name, lambda make: _call(make, shape, window, dilation), small, large)


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
    _sample("stage1_windows", (2, 56, 56, 64), 7, 1, small=False, large=True),
    _sample("stage1_dilated", (2, 56, 56, 64), 7, 4, small=False, large=True),
    # Larger than the caches: another way of storing.
    _sample("streamed", (5, 112, 121, 32), 7, 2, small=False, large=True),
    _sample("one_size", (2, 20, 24, 5), 7, 2, small=False),
    _sample("other_size", (3, 15, 26, 5), 7, 2, small=False),
    _sample("even", (2, 14, 14, 8), 7, 2),
    _sample("ragged", (2, 9, 13, 4), 4, 1),
    _sample("ragged_dilated", (1, 17, 10, 3), 3, 4),
    _sample("dilation_beyond_map", (1, 5, 3, 4), 2, 8),
    _sample("window_beyond_map", (1, 5, 3, 2), 20, 1),
    _sample("window_1", (2, 3, 4, 6), 1, 1),
    _sample("one_pixel", (1, 1, 1, 7), 3, 2),
    _sample("one_channel", (2, 6, 7, 1), 3, 2),
    _sample("zero_batch", (0, 7, 7, 4), 7, 1),
    _sample("zero_rows", (2, 0, 7, 4), 7, 1),
    _sample("many_windows", (1, 257, 257, 2), 1, 1, small=False, large=True),
    Sample("channels_first", _channels_first, small=True),
    Sample("sliced", _sliced, small=True),
    Sample("expanded", _expanded, small=True),
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
