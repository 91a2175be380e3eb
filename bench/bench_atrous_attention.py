"""atrous_attention: ACC-ViT's stages, ragged maps, and head widths from 12 to 128."""

import torch

from bench.attention_baselines import flex_formulation, sdpa_formulation
from bench.goals import ATROUS_ATTENTION
from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import atrous_attention
from hybrid_kernels.samples import Maker
from python_ref.ops import atrous_attention_out

WINDOW = 7


def attention_case(
    name: str,
    group: str,
    size: tuple[int, int, int],
    heads: int,
    dilations: list[int],
    head_width: int = 32,
    **options: bool,
) -> Case:
    """A case on maps of `size` (batch, rows, columns), the batch larger on a GPU."""

    def build(make: Maker) -> tuple:
        n = len(dilations)
        qkv = make.data(*sized_for(make.device, *size), n, 3, heads, head_width)
        bias = make.parameter(n, (2 * WINDOW - 1) ** 2, heads)
        return qkv, bias, dilations, WINDOW, head_width**-0.5

    return Case(name, group, build, **options)


def min_bytes(qkv, bias, dilations, window, scale) -> dict[str, int]:
    """Forward: qkv in; output and log-sum-exp out. Backward: those and the output's gradient in,
    the gradient of qkv out. The bias table is small."""
    out_bytes = tensor_bytes(qkv) // 3
    lse_bytes = qkv[..., 0, :, 0].numel() * 4
    return {
        "forward": tensor_bytes(qkv, bias) + out_bytes + lse_bytes,
        "backward": 2 * tensor_bytes(qkv, bias) + 2 * out_bytes + lse_bytes,
    }


STAGES = (
    attention_case("stage 1, 224", "tiling", (8, 56, 56), 2, [1, 2, 4, 8]),
    attention_case("stage 2, 224", "tiling", (8, 28, 28), 4, [1, 2, 4], quick=True),
    attention_case("stage 3, 224", "tiling", (8, 14, 14), 8, [1, 2], quick=True),
)
RAGGED = (
    attention_case("stage 1, 384", "ragged", (2, 96, 96), 2, [1, 2, 4, 8]),
    attention_case("200x334", "ragged", (1, 200, 334), 2, [1, 2, 4, 8]),
)
HEAD_WIDTHS = tuple(
    attention_case(
        f"head width {width}",
        "head width",
        (4, 28, 28),
        4,
        [1, 2],
        head_width=width,
        with_compile=False,
    )
    for width in (12, 16, 24, 40, 48, 64, 80, 96, 128)
)

BENCH = OpBench(
    op="atrous_attention",
    fused=atrous_attention,
    eager=atrous_attention_out,
    cases=(*STAGES, *RAGGED, *HEAD_WIDTHS),
    min_bytes=min_bytes,
    baselines={"sdpa": sdpa_formulation},
    cuda_baselines={"flex": torch.compile(flex_formulation, dynamic=False)},
    goals=ATROUS_ATTENTION,
    limited_by=(
        "bfloat16: a window and head takes 1.1 us forward and 2.6 us backward in the caches; its "
        "products 0.7 and 1.9 us at the GEMM's rate, all the rest (exponentials, dS, gathering, "
        "storing) 0.65 and 1.7 us by itself, and the two hardly overlap. Caches swept by other "
        "work cost 0.2 ms per call: much of stage 3. float32's backward is beyond the roofline, "
        "the goal further. avx2: 94 % of the roofline in the caches, the rest is memory"
    ),
)

if __name__ == "__main__":
    run(BENCH)
