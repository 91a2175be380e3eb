"""MAT's windows, and the queries of its pixels for the fusion that reads them again, Sec. 4.3.1."""

from torch import Tensor

from python_ref.ops.abstract_token_attention import abstract_token_attention_out


def abstract_token_fork(
    qkv: Tensor, token: Tensor, window: int, scale: float, pad_kv: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`abstract_token_attention`, and the pixels' queries for `token_fusion`.

    Together because their gradients are: what the fusion gives back to the queries adds to what
    the windows do, and a kernel can write the sum at once (`dq_extra` of the windows' backward).

    Args:
        qkv, token, window, scale, pad_kv: as in `abstract_token_attention`.

    Returns:
        The pixels' output (B, H, W, h, d), the tokens' (B, windows, h, d), and the pixels' queries
        (B, H, W, h, d).
    """
    out, summary = abstract_token_attention_out(qkv, token, window, scale, pad_kv)
    return out, summary, qkv[:, :, :, 0]
