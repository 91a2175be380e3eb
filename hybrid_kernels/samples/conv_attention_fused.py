"""Samples of conv_attention_fused: EMSNet's stages shrunk, odd and even maps, all edges."""

from . import BadCall, Cost, Declaration, Maker, Sample


def _call(
    make: Maker,
    B: int,
    H: int,
    W: int,
    *,
    heads: int = 2,
    d: int = 2,
    scale: float = 1.0,
    bias: bool = True,
):
    C = heads * d
    return (
        make.data(B, H, W, C),
        make.data(3, 3, C) * 0.5,
        make.data(81 * heads, C) * C**-0.5,
        make.data(81 * heads) if bias else None,
        make.data(C, C) * C**-0.5,
        heads,
        scale,
    )


def _sample(name: str, *size: int, cost=Cost.MEDIUM, **options) -> Sample:
    return Sample(name, lambda make: _call(make, *size, **options), cost)


def _small(name: str, *size: int, **options) -> Sample:
    return _sample(name, *size, cost=Cost.SMALL, **options)


def _channels_first(make: Maker):
    """A map as convolutions leave it, and weights as columns of larger ones."""
    x, dw, logit, bias, value, *rest = _call(make, 2, 3, 5)
    x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    return x, dw, logit.T.contiguous().T, bias, value.T, *rest


def _sliced(make: Maker):
    """Every second pixel and the first channels of a larger map, as the EMS block cuts them."""
    _, *rest = _call(make, 2, 3, 4)
    return make.data(2, 6, 8, 7)[:, ::2, ::2, :4], *rest


SAMPLES = (
    _sample("stage1", 6, 14, 14, d=4, cost=Cost.HUGE),
    _sample("stage2", 3, 7, 7, d=8, cost=Cost.LARGE),
    _sample("stage4", 20, 2, 2, d=24, cost=Cost.HUGE),
    _sample("detection", 1, 50, 30, d=4, cost=Cost.HUGE),
    _sample("bands", 1, 71, 3, d=3, cost=Cost.LARGE),
    _sample("one_size", 4, 5, 7, d=3, cost=Cost.LARGE),
    _sample("other_size", 5, 8, 4, d=3, cost=Cost.LARGE),
    _sample("wide", 1, 2, 2, heads=1, d=66, cost=Cost.LARGE),
    _sample("many", 260, 1, 1, heads=1, cost=Cost.LARGE),  # than there are blocks with sums on CUDA
    _sample("even", 3, 4, 5, heads=1, d=2, scale=0.5, cost=Cost.LARGE),
    _sample("odd", 2, 3, 5, d=3, scale=-0.3),
    _small("one_head", 1, 2, 3, heads=1, d=3),
    _sample("no_bias", 1, 1, 1, bias=False),
    _small("zero_batch", 0, 3, 2),
    Sample("channels_first", _channels_first, cost=Cost.LARGE),
    Sample("sliced", _sliced, cost=Cost.LARGE),
)


def _bad(name: str, message: str, change) -> BadCall:
    def build(make: Maker):
        names = ("x", "dw_weight", "logit_weight", "logit_bias", "value_weight", "heads", "scale")
        arguments = dict(zip(names, _call(make, 2, 3, 4), strict=True))
        return tuple((arguments | change(arguments)).values())

    return BadCall(name, build, message)


BAD_CALLS = (
    _bad("rank", r"x has shape .*\(B, H, W, C\)", lambda a: {"x": a["x"][0]}),
    _bad("no_pixel", "x has shape .*at least", lambda a: {"x": a["x"][:, :0]}),
    _bad("integers", "x has .*expected float32", lambda a: {"x": a["x"].int()}),
    _bad("heads", "heads = 3; expected a divisor of the 4", lambda a: {"heads": 3}),
    _bad("scale", "scale = inf", lambda a: {"scale": float("inf")}),
    _bad("taps", "dw_weight has shape", lambda a: {"dw_weight": a["dw_weight"][:2]}),
    _bad("logits", "logit_weight has shape", lambda a: {"logit_weight": a["logit_weight"][1:]}),
    _bad("bias", "logit_bias has shape", lambda a: {"logit_bias": a["logit_bias"][1:]}),
    _bad("value", "value_weight has shape", lambda a: {"value_weight": a["value_weight"][1:]}),
    _bad(
        "dtype", "value_weight has .*convert", lambda a: {"value_weight": a["value_weight"].half()}
    ),
)

DECLARATION = Declaration(
    op="conv_attention_fused",
    samples=SAMPLES,
    bad_calls=BAD_CALLS,
    two_sizes=("one_size", "other_size"),
    autocast=("x", "dw_weight", "logit_weight", "logit_bias", "value_weight"),
)
