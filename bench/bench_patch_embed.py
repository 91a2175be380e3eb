"""patch_embed: the pooled 1x1 convolutions of EMSNet-XXTiny and -Tiny, on channel slices."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import patch_embed
from hybrid_kernels.samples import Maker
from python_ref.ops import patch_embed_out as reference


def branch_case(
    name: str,
    kind: str,
    batch: int,
    size: tuple[int, int],
    channels: tuple[int, int, int],
    patch: int,
    **options,
) -> Case:
    """Channels (of the branch, of the slice, of the tokens) on `batch` images, more on a GPU."""
    whole, inner, outer = channels

    def build(make: Maker) -> tuple:
        images, *size_ = sized_for(make.device, batch, *size)
        x = make.data(images, *size_, whole)[..., :inner]
        return x, make.data(outer, inner) * inner**-0.5, patch, kind, "ceil"

    return Case(name, kind, build, **options)


def library(x: Tensor, weight: Tensor, patch: int, kind: str, pool_mode: str) -> Tensor:
    """Pooling as PyTorch has it, and a linear."""
    pooling = F.max_pool2d if kind == "max" else F.avg_pool2d
    options = {} if kind == "max" else {"count_include_pad": False}
    pooled = pooling(x.permute(0, 3, 1, 2), patch, ceil_mode=pool_mode == "ceil", **options)
    return F.linear(pooled.permute(0, 2, 3, 1), weight)


def min_bytes(x, weight, patch, kind, pool_mode) -> dict[str, int]:
    """Forward: the slice in, tokens and the pooled map out, a byte for every maximum. Backward: all
    these in, and the slice's gradient out."""
    B, H, W, C = x.shape
    patches = B * -(-H // patch) * -(-W // patch)
    tokens = patches * ((weight.shape[0] + C) * x.element_size() + C * (kind == "max"))
    return {"forward": tensor_bytes(x) + tokens, "backward": tensor_bytes(x) + tokens}


BENCH = OpBench(
    op="patch_embed",
    fused=patch_embed,
    eager=reference,
    cases=(
        branch_case("XXTiny stage 1, p 2", "max", 16, (56, 56), (16, 4, 8), 2, quick=True),
        branch_case("XXTiny stage 1, p 4", "max", 16, (56, 56), (16, 4, 8), 4),
        branch_case("XXTiny stage 3, p 2", "max", 64, (14, 14), (64, 16, 32), 2),
        branch_case("Tiny stage 2, 1280x800, p 4", "max", 1, (100, 160), (48, 12, 24), 4),
        branch_case("XXTiny stage 1, p 4 (avg)", "avg", 16, (56, 56), (16, 8, 8), 4, quick=True),
        branch_case("XXTiny stage 1, p 6", "avg", 16, (56, 56), (16, 8, 8), 6),
        branch_case("XXTiny stage 4, p 4", "avg", 64, (7, 7), (96, 48, 48), 4),
        branch_case("Tiny stage 2, 1280x800, p 6", "avg", 1, (100, 160), (48, 24, 24), 6),
    ),
    min_bytes=min_bytes,
    baselines={"library": library},
    limited_by="the fixed cost of a call: forward and backward of 2 x 4 x 4 pixels take 0.05 ms, "
    "with cold caches 0.35 ms; and of slices of pixels whole lines are read, up to four times what "
    "counts here",
)

if __name__ == "__main__":
    run(BENCH)
