"""Choice of the foreground tokens, PartialFormer Sec. 5.3.2."""

from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def context_topk(u: Tensor, n: int) -> Tensor:
    """Indices of the n tokens of every image whose channels have the largest mean.

    Of equal means the lower index wins; NaN is larger than everything, as in torch.sort. The means
    are taken in float32 (float64 for float64). Not differentiable.

    Args:
        u: tokens (B, N, C), any floating dtype, any strides.
        n: how many to choose, 1 <= n <= N.

    Returns:
        Indices (B, n), int32, ascending.

    Raises:
        ValueError: u has another rank, or n does not fit.
    """
    if u.ndim != 3:
        raise ValueError(f"u must be (B, N, C), got shape {tuple(u.shape)}")
    if not 1 <= n <= u.shape[1]:
        raise ValueError(f"n must be at least 1 and at most the N = {u.shape[1]} tokens, got {n}")
    means = u.detach().mean(dim=-1, dtype=statistics_dtype(u))
    order = means.sort(dim=1, descending=True, stable=True).indices
    return order[:, :n].sort(dim=1).values.int()
