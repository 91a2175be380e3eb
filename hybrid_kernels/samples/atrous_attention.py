"""Samples of atrous_attention: the paper's shapes shrunk, and every edge of the index maths."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    size: tuple[int, int, int],
    dilations: list[int],
    heads: int = 2,
    width: int = 16,
    window: int = 7,
    bias: bool = True,
    scale: float | None = None,
):
    n = len(dilations)
    qkv = make.data(*size, n, 3, heads, width)
    table = make.parameter(n, (2 * window - 1) ** 2, heads) if bias else None
    return qkv, table, dilations, window, width**-0.5 if scale is None else scale


def _sample(name: str, size, dilations, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, size, dilations, **options), cost)


def _channels_first(make: Maker):
    """qkv as a linear layer over NCHW maps leaves it: channels before rows and columns."""
    qkv, *rest = _call(make, (2, 4, 5), [1, 2], width=8, window=3)
    stored = qkv.permute(0, 3, 4, 5, 6, 1, 2).contiguous()
    return stored.permute(0, 5, 6, 1, 2, 3, 4), *rest


def _sliced(make: Maker):
    """A crop of a larger map, of some of its branches and heads: no stride is the dense one."""
    qkv, bias, *rest = _call(make, (2, 7, 10), [1, 2, 3], heads=3, width=12, window=3)
    cut = qkv[:, 1:6, 2:9, 1:, :, ::2, :10]
    return cut, bias[1:, :, ::2], rest[0][1:], *rest[1:]


def _expanded(make: Maker):
    """One image and one head, broadcast over a batch and over heads by stride 0."""
    qkv, bias, *rest = _call(make, (1, 4, 5), [2], heads=1, width=8, window=3)
    return qkv.expand(3, -1, -1, -1, -1, 2, -1), bias.expand(-1, -1, 2), *rest


SAMPLES = (
    _sample("stage1", (2, 56, 56), [1, 2, 4, 8], width=32, cost=Cost.HUGE),
    _sample("stage2", (1, 28, 28), [1, 2, 4], width=32, cost=Cost.LARGE),
    _sample("stage3", (1, 14, 14), [1, 2], heads=3, width=32),
    _sample("one_size", (5, 7, 9), [1, 2], width=8, window=6, cost=Cost.LARGE),
    _sample("other_size", (7, 10, 11), [1, 2], width=8, window=6, cost=Cost.LARGE),
    _sample("stage4", (2, 7, 7), [1], heads=2, width=16, cost=Cost.SMALL),
    _sample("ragged", (2, 9, 13), [1], width=16, cost=Cost.SMALL),
    _sample("ragged_dilated", (1, 17, 10), [1, 2, 4], heads=1, width=16),
    _sample("dilation_beyond_map", (1, 4, 2), [8, 1], width=8, cost=Cost.SMALL),
    _sample("one_pixel", (1, 1, 1), [2], width=32, cost=Cost.SMALL),
    _sample("one_row", (1, 1, 17), [1, 3], width=8, window=5, cost=Cost.SMALL),
    _sample("zero_batch", (0, 7, 7), [1, 2], width=16, cost=Cost.SMALL),
    _sample("zero_rows", (2, 0, 7), [1], width=16, cost=Cost.SMALL),
    _sample("width_1", (1, 5, 6), [1, 2], width=1, window=3, cost=Cost.SMALL),
    _sample("width_12", (1, 8, 9), [1, 2], width=12, window=4),
    _sample("width_15", (1, 7, 14), [1], heads=3, width=15),
    _sample("width_35", (1, 7, 9), [1], heads=1, width=35, window=3),
    _sample("width_48", (1, 7, 9), [1], width=48),
    _sample("width_128", (1, 8, 7), [1], heads=1, width=128),
    _sample("window_1", (1, 2, 3), [1, 2], width=8, window=1, cost=Cost.SMALL),
    _sample("window_8", (1, 9, 16), [1, 2], width=16, window=8),
    _sample("window_12", (1, 12, 13), [1], width=32, window=12),
    _sample("window_16", (1, 16, 18), [1], heads=1, width=16, window=16),
    _sample(
        "eight_branches",
        (1, 2, 3),
        [1, 2, 3, 1, 2, 3, 1, 2],
        heads=1,
        width=8,
        window=2,
        cost=Cost.SMALL,
    ),
    _sample("no_bias", (1, 9, 7), [1, 2], width=16, bias=False, cost=Cost.SMALL),
    _sample("large_scores", (1, 7, 7), [1], width=16, scale=8.0, cost=Cost.SMALL),
    _sample("negative_scale", (1, 5, 5), [1], width=8, window=3, scale=-0.3, cost=Cost.SMALL),
    _sample(
        "many_windows", (1, 257, 257), [1], heads=1, width=8, window=1, bias=False, cost=Cost.HUGE
    ),
    Sample("channels_first", _channels_first, cost=Cost.SMALL),
    Sample("sliced", _sliced),
    Sample("expanded", _expanded, cost=Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        qkv, bias, dilations, window, scale = _call(make, (1, 4, 4), [1, 2], width=8, window=3)
        arguments = dict(qkv=qkv, bias=bias, dilations=dilations, window=window, scale=scale)
        arguments.update(change(qkv, bias))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"qkv .*\(B, H, W, branches, 3, heads", lambda q, b: {"qkv": q[0]}),
    _bad("no_key", r"qkv .*3", lambda q, b: {"qkv": q[:, :, :, :, :2]}),
    _bad("integers", "qkv has .*expected float32", lambda q, b: {"qkv": q.int()}),
    _bad("bias_dtype", "bias has .*float16.*expected", lambda q, b: {"bias": b.half()}),
    _bad("bias_shape", r"bias has shape .*25", lambda q, b: {"bias": b[:, 1:]}),
    _bad("window_0", "window = 0; expected 1 to 16", lambda q, b: {"window": 0}),
    _bad("window_17", "window = 17; expected 1 to 16", lambda q, b: {"window": 17}),
    _bad("dilation_0", "dilations = .*expected", lambda q, b: {"dilations": [1, 0]}),
    _bad("dilation_missing", "dilations = .*2 branches", lambda q, b: {"dilations": [1]}),
    _bad("wide_head", "width 129", lambda q, b: {"qkv": q.repeat(1, 1, 1, 1, 1, 1, 17)[..., :129]}),
    _bad("infinite_scale", "scale = inf", lambda q, b: {"scale": float("inf")}),
)

DECLARATION = Declaration(
    op="atrous_attention",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("qkv",),
)
