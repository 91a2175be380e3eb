"""Coarse semantics injected into a finer map: MSCSA Fig. 5b, TopFormer's semantic injection."""

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def inject_fuse(local: Tensor, logit: Tensor, offset: Tensor) -> Tensor:
    """y = local * up(hardsigmoid(logit)) + up(offset), with up bilinear to the size of local.

    The hard sigmoid relu6(t + 3) / 6 is taken on the coarse map. Row y of the fine map reads row
    max(0, (y + 0.5) H / H_i - 0.5) of the coarse one (align_corners=False).

    Args:
        local: fine map (B, H_i, W_i, C), any floating dtype, any strides.
        logit, offset: coarse maps (B, H, W, C), H and W at least 1; they may also be the larger.

    Returns:
        y (B, H_i, W_i, C) in local's dtype.

    Raises:
        ValueError: shapes do not fit.
    """
    _check(local, logit, offset)
    return local * _up(_hard_sigmoid(logit), local) + _up(offset, local)


def inject_fuse_backward(
    grad: Tensor,
    local: Tensor,
    logit: Tensor,
    offset: Tensor,
    need_local: bool,
    need_logit: bool,
    need_offset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `inject_fuse`: every coarse cell gathers what was read from it.

    dlocal = grad * up(hardsigmoid(logit)), doffset = up^T(grad), dlogit = up^T(grad * local) times
    1/6 where -3 < logit < 3 and 0 elsewhere. In float32 (float64 for float64).

    Returns:
        (dlocal, dlogit, doffset); what is not needed has shape (0,).
    """
    _check(local, logit, offset)
    wide = statistics_dtype(local)
    grads = [local.new_empty(0)] * 3
    rows = bilinear_weights(logit.shape[1], local.shape[1], grad.to(wide))
    columns = bilinear_weights(logit.shape[2], local.shape[2], grad.to(wide))
    grad, fine, coarse = grad.to(wide), local.to(wide), logit.to(wide)
    if need_local:
        grads[0] = grad * torch.einsum("ip,jq,bpqc->bijc", rows, columns, _hard_sigmoid(coarse))
    if need_logit:
        slope = ((coarse > -3) & (coarse < 3)).to(wide) / 6
        grads[1] = slope * torch.einsum("ip,jq,bijc->bpqc", rows, columns, grad * fine)
    if need_offset:
        grads[2] = torch.einsum("ip,jq,bijc->bpqc", rows, columns, grad)
    dlocal, dlogit, doffset = (g.to(local.dtype) for g in grads)
    return dlocal, dlogit, doffset


def bilinear_weights(size: int, fine: int, like: Tensor) -> Tensor:
    """Weight of coarse row p in fine row i of one axis: (fine, size), rows sum to 1."""
    centre = torch.arange(fine, dtype=like.dtype, device=like.device) + 0.5
    source = (centre * size / fine - 0.5).clamp(min=0, max=size - 1)
    row = torch.arange(size, dtype=like.dtype, device=like.device)
    return (1 - (source[:, None] - row).abs()).clamp(min=0)


def _hard_sigmoid(t: Tensor) -> Tensor:
    # Not F.hardsigmoid, whose float64 gradient is 1/6 rounded to float32.
    return F.relu6(t + 3) / 6


def _up(coarse: Tensor, fine: Tensor) -> Tensor:
    nchw = F.interpolate(
        coarse.permute(0, 3, 1, 2), tuple(fine.shape[1:3]), mode="bilinear", align_corners=False
    )
    return nchw.permute(0, 2, 3, 1)


def _check(local: Tensor, logit: Tensor, offset: Tensor) -> None:
    if local.ndim != 4:
        raise ValueError(f"local must be (B, H, W, C), got shape {tuple(local.shape)}")
    expected = (local.shape[0], *logit.shape[1:3], local.shape[3])
    if logit.ndim != 4 or tuple(logit.shape) != expected or 0 in logit.shape[1:3]:
        raise ValueError(
            f"logit must be (B, H, W, C) with local's B = {local.shape[0]} and C = "
            f"{local.shape[3]} and at least one pixel, got {tuple(logit.shape)}"
        )
    if offset.shape != logit.shape:
        raise ValueError(
            f"offset must be {tuple(logit.shape)} like logit, got {tuple(offset.shape)}"
        )
