"""Gated fusion of parallel branches, ACC-ViT Sec. 2.2, Eq. 2."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gated_fuse(
    x: Tensor,
    m: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: bool,
) -> Tensor:
    """Mix branches with weights that depend on the input, per pixel and channel.

    y = [x +] sum_k g_k * scale_k * m_k with g = softmax_k(weight_k * x + bias_k). Without weight
    and bias the branches are averaged; a single branch needs no gate.

    Args:
        x: input of the gate (B, H, W, C), any floating dtype.
        m: n branches, each (B, H, W, C).
        weight, bias: gate parameters (n, C), or both None for the mean.
        scale: factor of every branch, (B, n, C) or (B, n, 1) (squeeze-excitation, drop path), or
            None.
        residual: add x to the mixture.

    Returns:
        y (B, H, W, C) in x's dtype, contiguous.

    Raises:
        ValueError: shapes do not fit, or only one of weight and bias is given.
    """
    _check(x, m, weight, bias, scale)
    gates = _gates(x, len(m), weight, bias).unbind()
    y = x if residual else torch.zeros_like(x)
    for k, (gate, branch) in enumerate(zip(gates, m, strict=True)):
        y = y + gate * _scaled(branch, scale, k)
    return y.contiguous()


def gated_fuse_backward(
    grad: Tensor,
    x: Tensor,
    m: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: bool,
    need_x: bool,
    need_m: Sequence[bool],
    need_gate: bool,
    need_scale: bool,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """Gradients of `gated_fuse`; the gates are computed again.

    With t_k = grad * scale_k * m_k and dl_k = g_k * (t_k - sum_j g_j t_j):
    dm_k = g_k * scale_k * grad, dx = [grad +] sum_k weight_k * dl_k, dweight_k = sum dl_k * x and
    dbias_k = sum dl_k over images and pixels, dscale_k = sum grad * g_k * m_k over pixels (and
    over channels for a scale (B, n, 1)).

    Args:
        grad: gradient of y, (B, H, W, C).
        x, m, weight, bias, scale, residual: as in the forward.
        need_x, need_m, need_gate, need_scale: which gradients to compute, one need_m per branch.

    Returns:
        (dx, [dm_k], dweight, dbias, dscale); what is not needed has shape (0,).
    """
    _check(x, m, weight, bias, scale)
    parameter = torch.promote_types(x.dtype, torch.float32)
    none, none_parameter = x.new_empty(0), x.new_empty(0, dtype=parameter)
    gates = _gates(x, len(m), weight, bias)
    grad_m = [_scaled(gates[k] * grad, scale, k) if need_m[k] else none for k in range(len(m))]
    grad_x, grad_weight, grad_bias, grad_scale = (
        none,
        none_parameter,
        none_parameter,
        none_parameter,
    )
    if weight is not None:
        terms = torch.stack([grad * _scaled(branch, scale, k) for k, branch in enumerate(m)])
        grad_logits = gates * (terms - (gates * terms).sum(dim=0))
    if need_x:
        grad_x = grad.clone() if residual else torch.zeros_like(x)
        if weight is not None:
            grad_x += torch.einsum("kbhwc,kc->bhwc", grad_logits, weight.to(x.dtype))
    if need_gate and weight is not None:
        grad_logits = grad_logits.to(parameter)
        grad_weight = (grad_logits * x).sum(dim=(1, 2, 3))
        grad_bias = grad_logits.sum(dim=(1, 2, 3))
    if need_scale and scale is not None:
        per_pixel = [grad * gates[k] * branch for k, branch in enumerate(m)]
        grad_scale = torch.stack([p.to(parameter).sum(dim=(1, 2)) for p in per_pixel], dim=1)
        if scale.shape[-1] != x.shape[-1]:
            grad_scale = grad_scale.sum(dim=-1, keepdim=True)
    return grad_x, grad_m, grad_weight, grad_bias, grad_scale


def _gates(x: Tensor, branches: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Weights of the branches, (n, B, H, W, C), or (n, 1, 1, 1, 1) for the mean."""
    if weight is None or bias is None:
        return x.new_full((branches, 1, 1, 1, 1), 1 / branches)
    weight, bias = (p.to(x.dtype)[:, None, None, None, :] for p in (weight, bias))
    return (weight * x + bias).softmax(dim=0)


def _scaled(branch: Tensor, scale: Tensor | None, k: int) -> Tensor:
    if scale is None:
        return branch
    return branch * scale[:, k, None, None, :].to(branch.dtype)


def _check(
    x: Tensor,
    m: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must be (B, H, W, C), got shape {tuple(x.shape)}")
    if not m:
        raise ValueError("m must hold at least one branch, got none")
    for k, branch in enumerate(m):
        if branch.shape != x.shape:
            raise ValueError(f"m[{k}] must be {tuple(x.shape)} like x, got {tuple(branch.shape)}")
    if (weight is None) != (bias is None):
        raise ValueError("weight and bias must be given together, or both be None for the mean")
    gate = (len(m), x.shape[3])
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and tuple(parameter.shape) != gate:
            raise ValueError(f"{name} must be (n, C) = {gate}, got {tuple(parameter.shape)}")
    shapes = ((x.shape[0], len(m), x.shape[3]), (x.shape[0], len(m), 1))
    if scale is not None and tuple(scale.shape) not in shapes:
        raise ValueError(f"scale must be {shapes[0]} or {shapes[1]}, got {tuple(scale.shape)}")
