"""What ops on maps (B, H, W, C) share: the dtype of their parameters, and checks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._registration import require, require_tensor


def parameter_dtype(x: Tensor) -> torch.dtype:
    """Of the parameters beside a map, and of their gradients: float32, or float64 beside it."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widened(parameter: Tensor | None) -> Tensor | None:
    """A 16-bit parameter in float32; others as they are."""
    is_narrow = parameter is not None and parameter.dtype in (torch.bfloat16, torch.float16)
    return parameter.float() if is_narrow else parameter


def autocast_data(x: Tensor) -> Tensor:
    """What autocast would make of an op's data: for functions that hand it to several readers."""
    device = x.device.type
    is_cast = torch.is_autocast_enabled(device) and x.dtype == torch.float32
    return x.to(torch.get_autocast_dtype(device)) if is_cast else x


def require_map(op: str, name: str, x: Tensor) -> None:
    """Raise ``ValueError`` unless x is a floating (B, H, W, C)."""
    require(
        x.dim() == 4,
        f"{op}: {name} has shape {tuple(x.shape)}; expected 4 dimensions: (B, H, W, C)",
    )
    require(
        x.is_floating_point(),
        f"{op}: {name} has {x.dtype}; expected float32, bfloat16, float16 or float64",
    )


def require_pixels(op: str, x: Tensor, name: str = "x") -> None:
    """Raise ``ValueError`` for a map without a pixel; it may have no images."""
    has_pixels = x.shape[1] > 0 and x.shape[2] > 0
    require(has_pixels, f"{op}: {name} has shape {tuple(x.shape)}; expected at least one pixel")


def require_parameter(
    op: str, name: str, tensor: Tensor | None, shape: Sequence[int], meaning: str, x: Tensor
) -> None:
    """Raise ``ValueError`` unless a parameter beside the map x is None or has that shape."""
    if tensor is not None:
        require_tensor(op, name, tensor, [shape], meaning, parameter_dtype(x), ("x", x))


def require_affine(
    op: str, scale: Tensor | None, shift: Tensor | None, channels: int, x: Tensor
) -> None:
    """Raise ``ValueError`` unless a folded norm beside x is two (C,), or None twice."""
    missing = "scale" if scale is None else "shift"
    require(
        (scale is None) == (shift is None),
        f"{op}: scale and shift must both be given or both be None; {missing} is None",
    )
    require_parameter(op, "scale", scale, (channels,), "(C,)", x)
    require_parameter(op, "shift", shift, (channels,), "(C,)", x)


def require_like(op: str, name: str, tensor: Tensor, shape: Sequence[int], meaning: str, x: Tensor):
    """Raise ``ValueError`` unless a tensor has that shape, and the dtype and device of x."""
    require_tensor(op, name, tensor, [shape], meaning, x.dtype, ("x", x))
