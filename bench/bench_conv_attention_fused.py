"""conv_attention_fused: C-MHSA of EMSNet-XXTiny and -Tiny, from the map to the map."""

import torch.nn.functional as F
from torch import Tensor

from bench.bench_conv_attention import fold_formulation
from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import conv_attention, conv_attention_fused
from hybrid_kernels.samples import Maker
from python_ref.ops import conv_attention_fused as reference
from python_ref.ops.depthwise import depthwise


def stage_case(
    name: str, group: str, batch: int, size: tuple[int, int], channels: int, **options
) -> Case:
    """Patches of a stage of `batch` images, more on a GPU; two heads."""

    def build(make: Maker) -> tuple:
        images, *size_ = sized_for(make.device, batch, *size)
        logit = make.data(162, channels) * channels**-0.5
        value = make.data(channels, channels) * channels**-0.5
        x, taps = make.data(images, *size_, channels), make.data(3, 3, channels)
        return x, taps, logit, make.data(162), value, 2, 1.0

    return Case(name, group, build, **options)


def generated(
    attention, x: Tensor, dw_weight, logit_weight, logit_bias, value_weight, heads, scale
) -> Tensor:
    """Logits and values from PyTorch's own operators, for an attention that takes them."""
    pooled = depthwise(x, dw_weight, stride=2)
    logits = F.linear(pooled, logit_weight, logit_bias).unflatten(-1, (heads, 9, 9))
    return attention(F.linear(x, value_weight), logits, scale, 3, 2, 1)


def composed(*inputs) -> Tensor:
    """With `hybrid_kernels.conv_attention`, which reads the logits from memory."""
    return generated(conv_attention, *inputs)


def folded(*inputs) -> Tensor:
    """With im2col, a batched matrix product and the inverse of im2col."""
    return generated(fold_formulation, *inputs)


def min_bytes(x, *parameters) -> dict[str, int]:
    """Forward: the map in and out. Backward: the map and a gradient in, the map's gradient out;
    both: the parameters, once more as gradients."""
    weights = tensor_bytes(*parameters[:4])
    return {
        "forward": 2 * tensor_bytes(x) + weights,
        "backward": 3 * tensor_bytes(x) + 2 * weights,
    }


BENCH = OpBench(
    op="conv_attention_fused",
    fused=conv_attention_fused,
    eager=reference,
    cases=(
        stage_case("XXTiny stage 1, batch 32", "XXTiny", 32, (14, 14), 8, quick=True),
        stage_case("XXTiny stage 1, batch 256", "XXTiny", 256, (14, 14), 8),
        stage_case("XXTiny stage 2, batch 256", "XXTiny", 256, (7, 7), 16),
        stage_case("XXTiny stage 4, batch 256", "XXTiny", 256, (2, 2), 48),
        stage_case("XXTiny stage 1, 1280x800", "XXTiny", 4, (50, 80), 8),
        stage_case("Tiny stage 1, batch 64", "Tiny", 64, (14, 14), 16, quick=True),
        stage_case("Tiny stage 3, batch 256", "Tiny", 256, (4, 4), 32),
        stage_case("Tiny stage 4, 1280x800", "Tiny", 4, (7, 10), 64),
    ),
    min_bytes=min_bytes,
    baselines={"composed": composed, "fold": folded},
    limited_by=(
        "instructions, not memory: of XXTiny stage 1 forward, half is generating logits with their "
        "softmax and a third mixing; the backward's are spread over its short products"
    ),
)

if __name__ == "__main__":
    run(BENCH)
