"""The generated logits of EMSNet's C-MHSA in Triton: from D, a row of nine at a time."""

import triton
import triton.language as tl
from torch import Tensor, finfo

from hybrid_kernels.triton.launch import Settings, settings
from hybrid_kernels.triton.token_rows import LOG2_E

Generator = tuple[Tensor, Tensor, Tensor | None]  # of logits: D, M, m


@triton.jit
def row_logits(pooled, weight, bias, window, exists, first, step, C, K: tl.constexpr):
    """Nine logits of each window, (windows, 16): rows first, first + step, ... of the weight."""
    slot = tl.arange(0, 16)
    logit = first + slot * step
    total = tl.zeros((window.shape[0], 16), tl.float32)
    for start in range(0, C, K):
        k = start + tl.arange(0, K)
        inside = k < C
        seen = exists[:, None] & inside[None, :]
        d = tl.load(pooled + window[:, None] * C + k[None, :], mask=seen, other=0.0)
        wanted = (slot < 9)[None, :] & inside[:, None]
        m = tl.load(weight + logit[None, :] * C + k[:, None], mask=wanted, other=0.0)
        total += tl.dot(d, m, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + logit, mask=slot < 9, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def row_softmax(logits, scale):
    """Statistics of rows of nine logits, to base 2, and their exponentials (windows, 16)."""
    is_slot = (tl.arange(0, 16) < 9)[None, :]
    x = tl.where(is_slot, logits * (scale * LOG2_E), float("-inf"))
    peak = tl.max(x, axis=1)
    weight = tl.exp2(x - peak[:, None])
    return peak, 1.0 / tl.sum(weight, axis=1), weight


@triton.jit
def load_slots(x, image, i, j, H, W, c, exists, in_head):
    """Channels c of the slots of windows (i, j) as (windows, 16, channels); 0 outside the map."""
    slot = tl.arange(0, 16)
    at_i = i[:, None] * 2 - 1 + (slot // 3)[None, :]
    at_j = j[:, None] * 2 - 1 + (slot % 3)[None, :]
    inside = exists[:, None] & (slot < 9)[None, :]
    inside = inside & (at_i >= 0) & (at_i < H) & (at_j >= 0) & (at_j < W)
    where = at_i.to(tl.int64) * x[1][1] + at_j.to(tl.int64) * x[1][2]
    where += (image.to(tl.int64) * x[1][0])[:, None]
    where = where[:, :, None] + (c.to(tl.int64) * x[1][3])[None, None, :]
    mask = inside[:, :, None] & in_head[None, None, :]
    return tl.load(x[0] + where, mask=mask, other=0.0).to(tl.float32)


def constants_of(name: str, values: Tensor, heads: int) -> tuple[Settings, dict[str, int]]:
    """Settings of a kernel, and the sizes that it is compiled for."""
    C = values.shape[3]
    D = C // heads
    bits = finfo(values.dtype).bits
    width = 8 if D <= 8 else 32
    problem = f"{bits}-bit, d <= {width}"  # wider heads are cut
    chosen = settings(f"conv_attention_fused.{name}", problem, values.device)
    K = min(64, max(16, triton.next_power_of_2(C)))
    return chosen, {"D": D, "K": K, "CHANNELS": min(width, triton.next_power_of_2(D))}
