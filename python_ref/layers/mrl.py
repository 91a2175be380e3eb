"""Mixing regionally and locally: the MRL block, Sec. 2.1, 2.2, 4.3 and Appendix A.2.

Every region of r x r pixels is sampled to one token, global attention mixes the few tokens, and
what it says returns to all pixels of the region, where a small convolution mixes locally.
"""

from torch import Tensor, nn

from python_ref.layers.class_token import split_class_token, to_tokens
from python_ref.layers.conv_projection import ConvProjection, DepthwiseNorm, TokenAttention
from python_ref.layers.layout import to_nchw, to_nhwc
from python_ref.ops import REFERENCE, OpTable
from python_ref.ops.lift_pool import check_group
from python_ref.ops.region_mix import region_sum

GROUP_CONVOLUTIONS = (None, "append", "replace")


class RegionSampler(nn.Module):
    """Learned down-sampling of every region to one token: (B, H, W, C) -> (B, H', W', C).

    Returns the map, too, for whoever reads it next.
    """

    used_ops = ("region_fork",)

    def __init__(self, dim: int, region: int, norm: bool = True) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.depthwise = DepthwiseNorm(dim, region, norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens, x = self.ops.region_fork(x, *self.depthwise.folded())
        return self.depthwise.finish(tokens), x


class LocalMix(nn.Module):
    """Pixels plus the token of their region, through a depthwise 3x3 convolution with BatchNorm.

    Args:
        dim: channels C.
        region: side of a region, in pixels.
        norm: False leaves out the BatchNorm after the plain convolution.
        gc: "append" adds a group convolution with a BatchNorm after the plain one, "replace" takes
            it instead, which makes the local mix equivariant to rotations; None has none.
        gc_group, gc_reduce: as in `lift_pool`.

    Raises:
        ValueError: gc, gc_group or gc_reduce is none of these.
    """

    def __init__(
        self,
        dim: int,
        region: int,
        *,
        norm: bool = True,
        gc: str | None = None,
        gc_group: str = "p4",
        gc_reduce: str = "max",
    ) -> None:
        super().__init__()
        if gc not in GROUP_CONVOLUTIONS:
            raise ValueError(f"gc must be one of {GROUP_CONVOLUTIONS}, got {gc!r}")
        check_group(gc_group, gc_reduce)
        self.ops: OpTable = REFERENCE
        self.region, self.group, self.reduce = region, gc_group, gc_reduce
        self.plain = DepthwiseNorm(dim, 3, norm) if gc != "replace" else None
        # A norm does not fold into a maximum, which turns round under a negative factor.
        self.lifted = DepthwiseNorm(dim, 3) if gc else None
        plain, lifted = ("region_mix",) if self.plain else (), ("lift_pool",) if gc else ()
        self.used_ops = plain + lifted

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """x (B, H, W, C), g (B, H', W', C) -> (B, H, W, C)."""
        if self.plain is None:
            y = region_sum(x, g, self.region)
        else:
            kernel, bias = self.plain.folded()
            y = self.plain.finish(self.ops.region_mix(x, g, kernel, self.region, bias))
        if self.lifted is None:
            return y
        y = self.ops.lift_pool(y, self.lifted.kernel, self.group, self.reduce)
        return to_nhwc(self.lifted.norm(to_nchw(y)))


class MRLMixer(nn.Module):
    """Sample regions, attend among them, mix locally, project: what replaces self-attention.

    The paper prints no formulas; where the published sizes leave a choice it is an argument, and
    the default is the reading that fits them best.

    Args:
        dim: channels C.
        heads: attention heads.
        region: side r of a region, in pixels.
        common: CommonQKV, see `ConvProjection`.
        kv_conv, q_conv: depthwise 3x3 convolutions of the regional tokens before the linear
            layers; CommonQKV always has all three.
        kv_stride: of the keys' and values' convolutions.
        samplers: 3 samples queries, keys and values with kernels of their own, instead of
            convolving them.
        sampler_bn, local_bn: BatchNorm after the sampler and the local convolution.
        qkv_bias, proj_bias: biases of the linear layers.
        gc, gc_group, gc_reduce: group convolution in the local mix, see `LocalMix`.
        scale_mode: see `TokenAttention`.
        regional_linear: a linear layer after the attention, at regional resolution.

    Raises:
        ValueError: an argument is out of range, or two do not go together.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        region: int,
        *,
        common: bool = False,
        kv_conv: bool = True,
        q_conv: bool = False,
        kv_stride: int = 1,
        samplers: int = 1,
        sampler_bn: bool = True,
        local_bn: bool = True,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        gc: str | None = None,
        gc_group: str = "p4",
        gc_reduce: str = "max",
        scale_mode: str = "width",
        regional_linear: bool = False,
    ) -> None:
        super().__init__()
        _check(region, samplers, common, kv_conv, q_conv, kv_stride)
        self.samplers = nn.ModuleList(
            RegionSampler(dim, region, sampler_bn) for _ in range(samplers)
        )
        self.projection = ConvProjection(
            dim,
            query=q_conv or common,
            key_value=kv_conv or common,
            stride=kv_stride,
            common=common,
            bias=qkv_bias,
        )
        self.attention = TokenAttention(
            dim, heads, linear=not common, bias=qkv_bias, scale_mode=scale_mode
        )
        self.regional = nn.Linear(dim, dim) if regional_linear else nn.Identity()
        self.local = LocalMix(
            dim, region, norm=local_bn, gc=gc, gc_group=gc_group, gc_reduce=gc_reduce
        )
        self.project = nn.Linear(dim, dim, bias=proj_bias)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, H, W, C), or tokens (B, 1 + H * W, C) of that size -> the same shape.

        The class token takes part in the attention among regions and in the linear layers.
        """
        cls, pixels = split_class_token(x, size)
        sampled = []
        for sampler in self.samplers:
            tokens, pixels = sampler(pixels)
            sampled.append(tokens)
        grid = sampled[0].shape[1:3]
        if len(sampled) == 1:
            tokens = self.projection(sampled[0], cls)
        else:
            tokens = [to_tokens(s, cls) for s in sampled]
        out = self.regional(self.attention(*tokens))
        cls, g = (None, out) if cls is None else (out[:, :1], out[:, 1:])
        y = self.local(pixels, g.unflatten(1, grid))
        return self.project(y if cls is None else to_tokens(y, cls))


def _check(
    region: int, samplers: int, common: bool, kv_conv: bool, q_conv: bool, kv_stride: int
) -> None:
    if region < 1:
        raise ValueError(f"region must be at least 1, got {region}")
    if samplers not in (1, 3) or (samplers == 3 and (common or kv_conv)):
        raise ValueError(
            f"samplers must be 1, or 3 with kv_conv=False and without CommonQKV, got {samplers}"
        )
    if q_conv and not kv_conv:
        raise ValueError("q_conv needs kv_conv: queries are not convolved alone")
    if kv_stride != 1 and not (kv_conv or common):
        raise ValueError(f"kv_stride must be 1 without convolutions of keys, got {kv_stride}")
