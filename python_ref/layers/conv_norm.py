"""A convolution and what follows it: stems, patch embeddings, classifiers."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers.layout import to_nchw, to_nhwc
from python_ref.layers.norm import Fold


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and an activation, NCHW; an odd kernel keeps the size at stride 1."""

    folds = (Fold("norm", after="conv"),)

    def __init__(
        self,
        in_dim: int,
        dim: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
        act: Callable[[Tensor], Tensor] | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_dim, dim, kernel, stride, padding=kernel // 2, groups=groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(dim, eps=eps)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class PatchEmbed(nn.Module):
    """Strided convolution and a norm over channels: (B, H, W, C) -> (B, H', W', C').

    What is left over beside whole patches is dropped, as by any convolution; a map smaller than
    one patch is filled up to it with zeros.

    Args:
        in_dim: channels C.
        dim: channels C'.
        kernel: side of the convolution; larger than its stride means overlapping patches.
        stride: side of a patch.
        padding: zeros on every side.
        norm: "layer", "batch" or None.
        bias: of the convolution.
        eps: of the norm.

    Raises:
        ValueError: norm is none of these.
    """

    folds = (Fold("norm", after="conv"),)

    def __init__(
        self,
        in_dim: int,
        dim: int,
        kernel: int,
        stride: int,
        padding: int = 0,
        *,
        norm: str | None = "layer",
        bias: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if norm not in ("layer", "batch", None):
            raise ValueError(f"norm must be 'layer', 'batch' or None, got {norm!r}")
        self.conv = nn.Conv2d(in_dim, dim, kernel, stride, padding, bias=bias)
        norms = {"layer": nn.LayerNorm, "batch": nn.BatchNorm2d}
        self.norm = norms[norm](dim, eps=eps) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self._at_least_one_patch(to_nchw(x)))
        if isinstance(self.norm, nn.BatchNorm2d):
            return to_nhwc(self.norm(x))
        x = to_nhwc(x)
        return x if self.norm is None else self.norm(x)

    def _at_least_one_patch(self, x: Tensor) -> Tensor:
        side = self.conv.kernel_size[0] - 2 * self.conv.padding[0]
        missing = [max(0, side - length) for length in x.shape[-2:]]
        return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x


class ConvStem(nn.Sequential):
    """Image -> map of stride 4: 3x3 stride 2 to C / 2, a 3x3, and 3x3 stride 2 to C, NCHW.

    All convolutions have biases; BatchNorm after each, GELU after the first two. MAT Sec. 4.3 has
    a "depthwise" middle, PartialFormer Sec. 5.3 a "full" one.

    Raises:
        ValueError: middle is neither.
    """

    def __init__(self, in_chans: int, dim: int, middle: str = "depthwise") -> None:
        if middle not in ("depthwise", "full"):
            raise ValueError(f"middle must be 'depthwise' or 'full', got {middle!r}")
        half = dim // 2
        groups = half if middle == "depthwise" else 1
        super().__init__(
            ConvNorm(in_chans, half, 3, 2, bias=True, act=F.gelu),
            ConvNorm(half, half, 3, groups=groups, bias=True, act=F.gelu),
            ConvNorm(half, dim, 3, 2, bias=True),
        )


class ConvHead(nn.Module):
    """1x1 convolution to a wide map, BatchNorm, GELU, mean over pixels, Linear.

    (B, C, H, W) -> logits (B, num_classes). The classifier of MAT, PartialFormer and MCGA.
    """

    def __init__(self, dim: int, num_classes: int, hidden: int = 1280) -> None:
        super().__init__()
        self.expand = ConvNorm(dim, hidden, 1, bias=True, act=F.gelu)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.expand(x).mean(dim=(2, 3)))


class PoolHead(nn.Module):
    """Mean over pixels, [LayerNorm], Linear: (B, C, H, W) -> logits (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int, norm_eps: float | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm_eps is not None else None
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3))
        return self.classifier(pooled if self.norm is None else self.norm(pooled))
