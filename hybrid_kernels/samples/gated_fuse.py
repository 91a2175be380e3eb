"""Samples of gated_fuse: both uses in ACC-ViT, every kind of scale, and strided maps."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    shape: tuple[int, int, int, int],
    branches: int,
    *,
    gate: bool = True,
    scale: str | None = None,
    residual: bool = True,
    steepness: float = 1.0,
):
    """``scale``: "channel" (squeeze-excitation), "branch" (drop path) or None."""
    B, _, _, C = shape
    x = make.data(*shape)
    m = [make.data(*shape) for _ in range(branches)]
    weight = make.parameter(branches, C) * steepness if gate else None
    bias = make.parameter(branches, C) if gate else None
    factors = {None: None, "channel": (B, branches, C), "branch": (B, branches, 1)}[scale]
    return x, m, weight, bias, make.parameter(*factors) if factors else None, residual


def _sample(name: str, shape, branches: int, *, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, shape, branches, **options), cost)


def _channels_first(make: Maker):
    """Maps as convolutions leave them: channels before rows and columns."""
    x, m, *rest = _call(make, (2, 4, 5, 6), 2, scale="channel")
    x, *m = (t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for t in (x, *m))
    return x, m, *rest


def _sliced(make: Maker):
    """The gate's input sampled with stride 2; branches side by side in one tensor."""
    _, _, *rest = _call(make, (2, 4, 5, 20), 3, scale="channel", residual=False)
    x = make.data(2, 8, 10, 20)[:, ::2, ::2]
    return x, list(make.data(2, 4, 5, 3, 20).unbind(3)), *rest


def _expanded(make: Maker):
    """One pixel broadcast over the map, one row over all rows, and expanded parameters."""
    _, _, weight, bias, scale, residual = _call(make, (2, 3, 4, 5), 2, scale="channel")
    x, m = make.data(2, 1, 1, 5).expand(-1, 3, 4, -1), make.data(1, 1, 4, 5).expand(2, 3, -1, -1)
    weight, scale = weight[:1].expand(2, -1), scale[:1].expand(2, -1, -1)
    return x, [m, make.data(2, 3, 4, 5)], weight, bias, scale, residual


SAMPLES = (
    _sample("stage1", (2, 56, 56, 64), 4, scale="branch", cost=Cost.HUGE),
    _sample("stage2", (1, 28, 28, 128), 3, cost=Cost.LARGE),
    _sample("convolution", (2, 14, 14, 96), 3, scale="channel", residual=False),
    # Larger than the caches: another way of storing.
    _sample("streamed", (3, 75, 150, 64), 2, scale="channel", cost=Cost.HUGE),
    _sample("one_size", (2, 14, 17, 24), 3, scale="channel", cost=Cost.LARGE),
    _sample("other_size", (5, 11, 13, 24), 3, scale="channel", cost=Cost.LARGE),
    _sample("small_images", (40, 3, 5, 16), 2, scale="channel"),
    _sample("no_residual", (1, 5, 6, 16), 2, residual=False, cost=Cost.SMALL),
    _sample("drop_path", (3, 4, 5, 16), 2, scale="branch", cost=Cost.SMALL),
    _sample("mean", (2, 4, 5, 16), 3, gate=False, cost=Cost.SMALL),
    _sample("scaled_mean", (2, 4, 5, 12), 2, gate=False, scale="channel", cost=Cost.SMALL),
    _sample("one_branch", (2, 4, 5, 16), 1, gate=False, cost=Cost.SMALL),
    _sample("one_scaled_branch", (2, 4, 5, 16), 1, gate=False, scale="branch", cost=Cost.SMALL),
    _sample("one_gated_branch", (2, 4, 5, 8), 1, cost=Cost.SMALL),
    _sample("five_branches", (1, 6, 5, 20), 5, scale="branch"),
    _sample("eight_branches", (1, 6, 5, 33), 8, scale="channel"),
    _sample("one_channel", (2, 5, 6, 1), 2, scale="branch", cost=Cost.SMALL),
    _sample("channels_3", (2, 5, 6, 3), 2, cost=Cost.SMALL),
    _sample("channels_35", (1, 9, 7, 35), 4, scale="channel"),
    _sample("one_pixel", (1, 1, 1, 16), 2, cost=Cost.SMALL),
    _sample("one_row", (2, 1, 23, 12), 2, cost=Cost.SMALL),
    _sample("zero_batch", (0, 7, 7, 8), 2, scale="channel", cost=Cost.SMALL),
    _sample("zero_rows", (2, 0, 7, 8), 2, scale="branch", cost=Cost.SMALL),
    _sample("steep_gate", (1, 5, 6, 16), 3, steepness=40.0),
    Sample("channels_first", _channels_first, cost=Cost.SMALL),
    Sample("sliced", _sliced),
    Sample("expanded", _expanded, cost=Cost.SMALL),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        x, m, weight, bias, scale, residual = _call(make, (2, 4, 4, 8), 2, scale="channel")
        arguments = dict(x=x, m=m, weight=weight, bias=bias, scale=scale, residual=residual)
        arguments.update(
            change(**{name: arguments[name] for name in ("x", "m", "weight", "scale")})
        )
        return tuple(arguments.values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", lambda x, **_: {"x": x[0]}),
    _bad("integers", "x has .*expected float32", lambda x, **_: {"x": x.int()}),
    _bad("no_branch", "m has 0 branches; expected 1 to 8", lambda **_: {"m": []}),
    _bad("nine_branches", "m has 9 branches; expected 1 to 8", lambda x, **_: {"m": [x] * 9}),
    _bad("branch_shape", r"m\[1\] has shape", lambda m, **_: {"m": [m[0], m[1][:, 1:]]}),
    _bad("branch_dtype", r"m\[0\] has .*float16", lambda m, **_: {"m": [m[0].half(), m[1]]}),
    _bad("weight_alone", "bias is None; give both", lambda **_: {"bias": None}),
    _bad("bias_alone", "weight is None; give both", lambda **_: {"weight": None}),
    _bad("weight_shape", r"weight has shape .*\(2, 8\)", lambda weight, **_: {"weight": weight.T}),
    _bad("weight_dtype", "weight has .*float64", lambda weight, **_: {"weight": weight.double()}),
    _bad("scale_rank", r"scale has shape .*\(2, 2, 1\)", lambda scale, **_: {"scale": scale[0]}),
    _bad(
        "scale_width",
        r"scale has shape .*\(2, 2, 8\)",
        lambda scale, **_: {"scale": scale[..., :3]},
    ),
    _bad("scale_dtype", "scale has .*float16", lambda scale, **_: {"scale": scale.half()}),
)

DECLARATION = Declaration(
    op="gated_fuse",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
)
