"""Convolutional projection to queries, keys and values: CvT Sec. 3.2 and MRL Appendix A.2."""

import torch
from torch import Tensor, nn

from python_ref.layers.class_token import split_class_token, to_tokens
from python_ref.layers.layout import to_nchw, to_nhwc, to_stencil
from python_ref.ops import REFERENCE, OpTable


class DepthwiseNorm(nn.Module):
    """Parameters of a depthwise convolution without bias, and of the BatchNorm after it.

    An operator convolves. In eval mode the norm is one factor and one shift per channel that the
    operator applies in the same pass (`folded`, `affine`); in training it needs the statistics of
    what the operator returns (`finish`).

    Args:
        dim: channels C.
        side: of the kernels.
        norm: False leaves the BatchNorm out.
    """

    def __init__(self, dim: int, side: int, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, side, groups=dim, bias=False)
        self.norm = nn.BatchNorm2d(dim) if norm else None

    @property
    def kernel(self) -> Tensor:
        """(k, k, C), a view of the weight (C, 1, k, k)."""
        return to_stencil(self.conv)

    def affine(self) -> Tensor | None:
        """Factor and shift (2, C) of the norm in eval mode, else None."""
        norm = self.norm
        if norm is None or self.training:
            return None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return torch.stack([scale, norm.bias - scale * norm.running_mean])

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Kernel (k, k, C) and bias (C,) of the convolution, with the norm in eval mode."""
        affine = self.affine()
        if affine is None:
            return self.kernel, None
        return self.kernel * affine[0], affine[1]

    def finish(self, y: Tensor) -> Tensor:
        """What remains to be done to the convolution's output (B, H, W, C)."""
        if self.norm is None or not self.training:
            return y
        return to_nhwc(self.norm(to_nchw(y)))


class ConvProjection(nn.Module):
    """Map -> tokens for queries, keys and values, by depthwise 3x3 convolutions with BatchNorm.

    The class token takes part in the linear layer, but in no convolution.

    Args:
        dim: channels C.
        query: convolve the queries.
        key_value: convolve keys and values.
        stride: of the keys' and values' convolutions.
        common: a linear layer first, shared by all three: CommonQKV. Attention then follows
            without the linear layers of its own.
        bias: of that linear layer.
    """

    def __init__(
        self,
        dim: int,
        *,
        query: bool = True,
        key_value: bool = True,
        stride: int = 1,
        common: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.used_ops = ("dwconv_qkv",) if key_value else ()
        self.stride = stride
        self.basis = nn.Linear(dim, dim, bias=bias) if common else nn.Identity()
        self.query = DepthwiseNorm(dim, 3) if query else None
        self.key = DepthwiseNorm(dim, 3) if key_value else None
        self.value = DepthwiseNorm(dim, 3) if key_value else None

    def forward(self, x: Tensor, cls: Tensor | None) -> list[Tensor]:
        """x (B, H, W, C), cls (B, 1, C) or None -> q, k, v, each (B, tokens, C), cls first."""
        x, cls = self.basis(x), None if cls is None else self.basis(cls)
        if self.key is None:
            return [to_tokens(x, cls)] * 3
        parts = (self.query, self.key, self.value)
        kernels = [None if part is None else part.kernel for part in parts]
        affines = [None if part is None else part.affine() for part in parts]
        # The class token joins after the norms, which the operator applies in eval mode only.
        joined = None if self.training else cls
        tokens = self.ops.dwconv_qkv(x, *kernels, *affines, 1, self.stride, joined)
        if not self.training:
            return list(tokens)
        rows = [t.unsqueeze(1) for t in tokens]  # maps of one row, for BatchNorm
        for index, part in enumerate(parts):
            rows[index] = rows[index] if part is None else part.finish(rows[index])
        return [to_tokens(row, cls) for row in rows]


class TokenAttention(nn.Module):
    """Linear layers to queries, keys and values, and softmax attention; no output layer.

    Args:
        dim: channels C.
        heads: attention heads h; C must be a multiple of h.
        linear: False takes the tokens as they are.
        bias: of the linear layers.
        scale_mode: "width" scales scores by C**-0.5, as CvT does for any number of heads; "head"
            by (C / h)**-0.5.

    Raises:
        ValueError: heads does not divide dim, or scale_mode is unknown.
    """

    used_ops = ("multiscale_attention",)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        linear: bool = True,
        bias: bool = True,
        scale_mode: str = "width",
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        if scale_mode not in ("head", "width"):
            raise ValueError(f"scale_mode must be 'head' or 'width', got {scale_mode!r}")
        self.ops: OpTable = REFERENCE
        self.heads = heads
        self.scale = (dim if scale_mode == "width" else dim // heads) ** -0.5
        self.query, self.key, self.value = (
            nn.Linear(dim, dim, bias=bias) if linear else nn.Identity() for _ in range(3)
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, N, C), (B, M, C), (B, M, C) -> (B, N, C)."""
        q, k, v = (
            linear(tokens).unflatten(-1, (self.heads, -1))
            for linear, tokens in ((self.query, q), (self.key, k), (self.value, v))
        )
        return self.ops.multiscale_attention(q, [k], [v], self.scale).flatten(-2)


class CvTAttention(nn.Module):
    """CvT's attention: convolutional projection, linear layers, attention, linear layer.

    Args:
        dim: channels C.
        heads: attention heads.
        kv_stride: of the keys' and values' convolutions.
        common: CommonQKV, one linear layer before the convolutions instead of three after them.
        qkv_bias: biases of the linear layers before the attention.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_stride: int = 2,
        common: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.projection = ConvProjection(dim, stride=kv_stride, common=common, bias=qkv_bias)
        self.attention = TokenAttention(dim, heads, linear=not common, bias=qkv_bias)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, H, W, C), or tokens (B, 1 + H * W, C) of that size -> the same shape."""
        cls, pixels = split_class_token(x, size)
        return self.project(self.attention(*self.projection(pixels, cls))).view_as(x)
