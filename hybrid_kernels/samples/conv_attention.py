"""Samples of conv_attention: EMSNet's and VOLO's windows, other geometries, every kind of edge."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    B: int,
    H: int,
    W: int,
    *,
    heads: int = 2,
    d: int = 4,
    kernel: int = 3,
    stride: int = 2,
    padding: int = 1,
    scale: float = 1.0,
):
    v = make.data(B, H, W, heads * d)
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in (H, W))
    logits = make.data(B, rows, columns, heads, kernel**2, kernel**2)
    return v, logits, scale, kernel, stride, padding


def _sample(name: str, *size: int, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, *size, **options), cost)


def _small(name: str, *size: int, **options) -> Sample:
    return _sample(name, *size, cost=Cost.SMALL, **options)


def _channels_first(make: Maker):
    """A map as convolutions leave it, and logits with the slots before rows and columns."""
    v, logits, *rest = _call(make, 2, 3, 5)
    v = v.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    logits = logits.permute(0, 3, 4, 5, 1, 2).contiguous().permute(0, 4, 5, 1, 2, 3)
    return v, logits, *rest


def _sliced(make: Maker):
    """Every second pixel and the first channels of a larger map."""
    _, *rest = _call(make, 2, 3, 4)
    return make.data(2, 6, 8, 11)[:, ::2, ::2, :8], *rest


def _expanded(make: Maker):
    """One pixel broadcast over the map; all windows with the same logits."""
    v, logits, *rest = _call(make, 2, 4, 3)
    return v[:, :1, :1].expand_as(v), logits[:, :1, :1].expand_as(logits), *rest


SAMPLES = (
    _sample("stage1", 5, 14, 14, d=4, cost=Cost.LARGE),
    _sample("stage2", 3, 7, 7, d=8, cost=Cost.LARGE),
    _sample("stage4", 20, 2, 2, d=24, cost=Cost.LARGE),
    _sample("detection", 1, 50, 30, d=4, cost=Cost.HUGE),
    _sample("volo", 2, 28, 28, heads=6, d=32, scale=32**-0.5, cost=Cost.HUGE),
    _sample("volo_stride_1", 1, 5, 6, d=16, stride=1, scale=0.25, cost=Cost.LARGE),
    _sample("bands", 1, 37, 6, stride=1, d=5, cost=Cost.LARGE),
    _sample("one_size", 5, 7, 11, d=7, cost=Cost.LARGE),
    _sample("other_size", 4, 6, 15, d=7, cost=Cost.LARGE),
    _sample("one_pixel", 1, 1, 1, cost=Cost.LARGE),
    _small("odd", 2, 3, 5, d=5, scale=-0.3),
    _small("stride_1", 1, 4, 3, d=2, kernel=2, stride=1),
    _sample("width_72", 1, 4, 3, heads=1, d=72, kernel=2),
    _sample("kernel_5", 1, 7, 6, kernel=5, stride=3, padding=2, cost=Cost.LARGE),
    _small("kernel_2", 1, 5, 4, kernel=2, padding=0),
    _small("kernel_1", 1, 2, 3, kernel=1, stride=1, padding=0),
    _small("gaps", 2, 7, 8, heads=1, d=3, kernel=2, stride=4),
    _sample("wide_padding", 1, 2, 3, heads=1, d=2, stride=1, padding=2, cost=Cost.LARGE),
    _sample("uncovered", 1, 6, 4, heads=1, padding=0, cost=Cost.LARGE),
    _sample("one_window", 1, 4, 3, heads=1, stride=10**12, cost=Cost.LARGE),
    _small("zero_batch", 0, 5, 3),
    _sample("large_logits", 1, 5, 4, scale=30.0, cost=Cost.LARGE),
    Sample("channels_first", _channels_first, cost=Cost.LARGE),
    Sample("sliced", _sliced, cost=Cost.LARGE),
    Sample("expanded", _expanded, cost=Cost.LARGE),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        v, logits, scale, kernel, stride, padding = _call(make, 2, 5, 3)
        arguments = dict(
            v=v, logits=logits, scale=scale, kernel=kernel, stride=stride, padding=padding
        )
        arguments.update(change(v, logits))
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"v has shape .*\(B, H, W, C\)", lambda v, s: {"v": v[0]}),
    _bad("empty_map", "v has shape .*at least 1", lambda v, s: {"v": v[:, :0]}),
    _bad("integers", "v has .*expected float32", lambda v, s: {"v": v.int()}),
    _bad("kernel", "kernel = 8; expected 1 to 7", lambda v, s: {"kernel": 8}),
    _bad("stride", "stride = 0; expected 1 or more", lambda v, s: {"stride": 0}),
    _bad("padding", "padding = 3; expected 0 to kernel - 1 = 2", lambda v, s: {"padding": 3}),
    _bad("scale", "scale = inf", lambda v, s: {"scale": float("inf")}),
    _bad("no_window", "holds no window of kernel 7", lambda v, s: {"kernel": 7, "padding": 0}),
    _bad("logits_rank", "logits has shape .*heads", lambda v, s: {"logits": s[0]}),
    _bad("logits_grid", r"logits has shape .*\(2, 3, 2, 2", lambda v, s: {"logits": s[:, 1:]}),
    _bad("logits_dtype", "logits has .*convert", lambda v, s: {"logits": s.half()}),
    _bad(
        "heads",
        "logits has 3 heads; expected a divisor of the 8 channels",
        lambda v, s: {"logits": s[:, :, :, :1].expand(-1, -1, -1, 3, -1, -1)},
    ),
)

DECLARATION = Declaration(
    op="conv_attention",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("v", "logits"),
)
