"""conv_attention: C-MHSA of EMSNet-XXTiny and -Tiny, outlook attention of VOLO."""

import torch.nn.functional as F
from torch import Tensor

from bench.goals import TIER_1
from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import conv_attention
from hybrid_kernels.samples import Maker
from python_ref.layers import to_nchw, to_nhwc
from python_ref.ops import conv_attention as reference


def window_case(
    name: str, group: str, batch: int, size: tuple[int, int], heads: int, d: int, **options
) -> Case:
    """Windows of 3 x 3 on `batch` images, more on a GPU; `stride` 2 unless given."""
    stride = options.pop("stride", 2)

    def build(make: Maker) -> tuple:
        images, *size_ = sized_for(make.device, batch, *size)
        grid = [(n - 1) // stride + 1 for n in size_]
        v = make.data(images, *size_, heads * d)
        logits = make.data(images, *grid, heads, 9, 9)
        return v, logits, 1.0 if group == "EMSNet" else d**-0.5, 3, stride, 1

    return Case(name, group, build, **options)


def fold_formulation(
    v: Tensor, logits: Tensor, scale: float, kernel: int, stride: int, padding: int
) -> Tensor:
    """im2col, a batched matrix product and its inverse: the modules that the authors published."""
    heads, slots = logits.shape[3:5]
    unfolded = F.unfold(to_nchw(v), kernel, padding=padding, stride=stride)
    values = unfolded.unflatten(1, (heads, -1, slots)).permute(0, 4, 1, 3, 2)
    weights = (scale * logits).softmax(dim=-1).flatten(1, 2)
    mixed = (weights @ values).permute(0, 2, 4, 3, 1).flatten(1, 3)
    return to_nhwc(F.fold(mixed, v.shape[1:3], kernel, padding=padding, stride=stride))


def min_bytes(v, logits, *_) -> dict[str, int]:
    """Forward: values and logits in, result out. Backward: those and the result's gradient in, both
    gradients out."""
    values, weights = tensor_bytes(v), tensor_bytes(logits)
    return {"forward": 2 * values + weights, "backward": 3 * values + 2 * weights}


BENCH = OpBench(
    op="conv_attention",
    fused=conv_attention,
    eager=reference,
    cases=(
        window_case("XXTiny stage 1, batch 32", "EMSNet", 32, (14, 14), 2, 4, quick=True),
        window_case("XXTiny stage 1, batch 256", "EMSNet", 256, (14, 14), 2, 4),
        window_case("XXTiny stage 2, batch 256", "EMSNet", 256, (7, 7), 2, 8),
        window_case("Tiny stage 3, batch 256", "EMSNet", 256, (4, 4), 2, 16),
        window_case("XXTiny stage 1, 1280x800", "EMSNet", 4, (50, 80), 2, 4),
        window_case("VOLO-D1 stage 1", "VOLO", 8, (28, 28), 6, 32, quick=True),
        window_case("VOLO-D1 stage 1, stride 1", "VOLO", 4, (28, 28), 6, 32, stride=1),
    ),
    min_bytes=min_bytes,
    baselines={"fold": fold_formulation},
    goals=TIER_1,
    limited_by=(
        "instructions more than memory: bfloat16 moves half the bytes in three quarters of the time"
    ),
)

if __name__ == "__main__":
    run(BENCH)
