"""Propagation of tokens back to their pixels, and the 1x1 convolution of what was gathered.

Prop of EMSNet's branches, thesis Sec. 3.3: a depthwise transposed convolution with kernel and
stride p, that is a nearest upsampling whose p x p copies are weighted. The exact mirror of
`patch_embed`: what a cut patch would write beyond the border is dropped.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def propagate(z: Tensor, kernel: Tensor, height: int, width: int) -> Tensor:
    """y[i, j] = z[i div p, j div p] * kernel[i mod p, j mod p], cropped to the map.

    Args:
        z: tokens (B, h, w, C), any floating dtype, with h the size H / p rounded up or down, w
            alike; pixels without a token become 0.
        kernel: (p, p, C).
        height, width: of the map, H and W.

    Returns:
        y (B, H, W, C).

    Raises:
        ValueError: shapes do not fit.
    """
    _check_propagate(z, kernel, height, width)
    patch, channels = kernel.shape[1:]
    taps = kernel.permute(2, 0, 1).unsqueeze(1)
    y = F.conv_transpose2d(z.permute(0, 3, 1, 2), taps, stride=patch, groups=channels)
    return F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2])).permute(0, 2, 3, 1)


def propagate_conv(
    maps: Sequence[Tensor],
    kernels: Sequence[Tensor | None],
    weight: Tensor,
    height: int,
    width: int,
    gate_x: Tensor | None,
    gate_weight: Tensor | None,
) -> Tensor:
    """1x1 convolution over the channels of several maps, some of which are still tokens.

    y = weight [part_1 | part_2 | ...], where a part is a full-size map or `propagate` of tokens;
    and with a gate, y = (gate_weight gate_x) * sigmoid(weight [...]), EMSNet's gated aggregation.

    Args:
        maps: maps (B, H, W, C_i), or tokens (B, h_i, w_i, C_i); any floating dtype, any strides.
        kernels: for each of them None, or the kernel (p_i, p_i, C_i) that spreads the tokens.
        weight: (C', sum of the C_i).
        height, width: H and W.
        gate_x: (B, H, W, C_g), or None.
        gate_weight: (C', C_g), or None.

    Returns:
        y (B, H, W, C').

    Raises:
        ValueError: shapes do not fit, or one of gate_x and gate_weight is missing.
    """
    _check(maps, kernels, weight, height, width, gate_x, gate_weight)
    y = F.linear(_concatenated(maps, kernels, height, width), weight)
    return y if gate_x is None else F.linear(gate_x, gate_weight) * y.sigmoid()


def propagate_conv_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    kernels: Sequence[Tensor | None],
    weight: Tensor,
    height: int,
    width: int,
    gate_x: Tensor | None,
    gate_weight: Tensor | None,
    need_maps: Sequence[bool],
    need_kernels: Sequence[bool],
    need_weight: bool,
    need_gate: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor]:
    """Gradients of `propagate_conv`; the concatenation is computed again.

    With a = weight [...], g = gate_weight gate_x and s = sigmoid(a): dg = grad * s and
    da = grad * g * s * (1 - s); without a gate da = grad. Of a part with gradient dy = weight^T da:
    dz[t] is the sum of dy * kernel over the cropped p x p cell of t, and dkernel[a, b] the sum of
    dy * z over images and tokens at the pixels (t p + a, s p + b). Computed in float32 (float64).

    Args:
        grad: gradient of y, (B, H, W, C').
        maps, kernels, weight, height, width, gate_x, gate_weight: as in the forward.
        need_maps, need_kernels, need_weight, need_gate: which gradients to compute, one entry per
            part; need_gate stands for gate_x and gate_weight.

    Returns:
        ([dmap_i], [dkernel_i], dweight, dgate_x, dgate_weight): maps in the dtype of theirs,
        parameters in float32 (float64); what is not needed, or None, has shape (0,).
    """
    _check(maps, kernels, weight, height, width, gate_x, gate_weight)
    wide = statistics_dtype(grad)
    grad, weight = grad.to(wide), weight.to(wide)
    tokens = [z.to(wide) for z in maps]
    taps = [None if kernel is None else kernel.to(wide) for kernel in kernels]
    joined = _concatenated(tokens, taps, height, width)
    none = grad.new_empty(0)
    grad_weight = grad_gate_x = grad_gate_weight = none
    if gate_x is not None:
        sigmoid = F.linear(joined, weight).sigmoid()
        grad_gate = grad * sigmoid
        if need_gate:
            grad_gate_x = (grad_gate @ gate_weight.to(wide)).to(gate_x.dtype)
            grad_gate_weight = torch.einsum("bhwd,bhwc->dc", grad_gate, gate_x.to(wide))
        grad = grad_gate * F.linear(gate_x.to(wide), gate_weight.to(wide)) * (1 - sigmoid)
    if need_weight:
        grad_weight = torch.einsum("bhwd,bhwc->dc", grad, joined)
    parts = (grad @ weight).split([z.shape[3] for z in maps], dim=3)
    grad_maps, grad_kernels = [none.to(z.dtype) for z in maps], [none] * len(maps)
    for i, (part, z, kernel) in enumerate(zip(parts, tokens, taps, strict=True)):
        cells = None if kernel is None else pixels_by_token(part, z, kernel)
        if need_maps[i]:
            grad_z = part if cells is None else torch.einsum("btasec,aec->btsc", cells, kernel)
            grad_maps[i] = grad_z.to(maps[i].dtype)
        if need_kernels[i] and cells is not None:
            grad_kernels[i] = torch.einsum("btasec,btsc->aec", cells, z)
    return grad_maps, grad_kernels, grad_weight, grad_gate_x, grad_gate_weight


def pixels_by_token(grad: Tensor, z: Tensor, kernel: Tensor) -> Tensor:
    """Pixels by token: (B, H, W, C) -> (B, h, p, w, p, C), zero beyond the map."""
    patch, (rows, columns) = kernel.shape[0], z.shape[1:3]
    bottom, right = rows * patch - grad.shape[1], columns * patch - grad.shape[2]
    whole = F.pad(grad, (0, 0, 0, right, 0, bottom))  # crops the pixels that have no token
    return whole.unflatten(2, (columns, patch)).unflatten(1, (rows, patch))


def _concatenated(
    maps: Sequence[Tensor], kernels: Sequence[Tensor | None], height: int, width: int
) -> Tensor:
    parts = [
        z if kernel is None else propagate(z, kernel, height, width)
        for z, kernel in zip(maps, kernels, strict=True)
    ]
    return torch.cat(parts, dim=-1)


def _check_propagate(z: Tensor, kernel: Tensor, height: int, width: int) -> None:
    if z.ndim != 4:
        raise ValueError(f"tokens must be (B, h, w, C), got shape {tuple(z.shape)}")
    patch = kernel.shape[0]
    if patch < 1 or tuple(kernel.shape) != (patch, patch, z.shape[3]):
        raise ValueError(
            f"kernel must be (p, p, C) with C = {z.shape[3]} like the tokens, got "
            f"{tuple(kernel.shape)}"
        )
    for name, tokens, size in (("rows", z.shape[1], height), ("columns", z.shape[2], width)):
        if tokens < 1 or tokens not in (size // patch, -(-size // patch)):
            raise ValueError(
                f"tokens must have {size} / {patch} {name}, rounded up or down, and at least one; "
                f"got {tokens}"
            )


def _check(
    maps: Sequence[Tensor],
    kernels: Sequence[Tensor | None],
    weight: Tensor,
    height: int,
    width: int,
    gate_x: Tensor | None,
    gate_weight: Tensor | None,
) -> None:
    if not maps or len(maps) != len(kernels):
        raise ValueError(
            f"maps and kernels must have the same number of entries, at least one, got "
            f"{len(maps)} and {len(kernels)}"
        )
    batch = maps[0].shape[0]
    for i, (z, kernel) in enumerate(zip(maps, kernels, strict=True)):
        if kernel is not None:
            _check_propagate(z, kernel, height, width)
        expected = (batch, height, width) if kernel is None else (batch, *z.shape[1:3])
        if tuple(z.shape[:3]) != expected:
            raise ValueError(f"maps[{i}] must be {(*expected, 'C')}, got {tuple(z.shape)}")
    channels = sum(z.shape[3] for z in maps)
    if weight.ndim != 2 or weight.shape[1] != channels:
        raise ValueError(f"weight must be (C', {channels}), got {tuple(weight.shape)}")
    if (gate_x is None) != (gate_weight is None):
        raise ValueError("gate_x and gate_weight must be given together, or both be None")
    if gate_x is None:
        return
    if tuple(gate_x.shape[:3]) != (batch, height, width):
        raise ValueError(
            f"gate_x must be ({batch}, {height}, {width}, C_g), got {tuple(gate_x.shape)}"
        )
    expected = (weight.shape[0], gate_x.shape[3])
    if tuple(gate_weight.shape) != expected:
        raise ValueError(f"gate_weight must be {expected}, got {tuple(gate_weight.shape)}")
