"""lift_pool: the group convolutions of GC-MHVN's local mixes, encoder and decoders, and mirrors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import lift_pool
from hybrid_kernels.samples import Maker
from python_ref.ops import lift_pool as reference


def lift_case(name: str, group: str, size: tuple[int, ...], reduce: str = "max", **options) -> Case:
    """A case on maps of `size` (batch, rows, columns, channels), the batch larger on a GPU."""

    def build(make: Maker) -> tuple:
        x = on_grid(make.data(*sized_for(make.device, *size)))
        return x, on_grid(make.parameter(3, 3, size[3])), group, reduce

    return Case(name, group if reduce == "max" else reduce, build, **options)


def on_grid(values: Tensor) -> Tensor:
    """Multiples of 1/64, whose responses are exact in float32: all formulations see one winner."""
    return (values * 64).round() / 64


def stacked(x: Tensor, weight: Tensor, group: str, reduce: str) -> Tensor:
    """All orientations as filters of one grouped convolution, channels last, then the pooling."""
    return _stacked(x.permute(0, 3, 1, 2), weight, group, reduce)


def channels_first(x: Tensor, weight: Tensor, group: str, reduce: str) -> Tensor:
    """The same on a map (B, C, H, W) in that order of memory, and back."""
    return _stacked(x.permute(0, 3, 1, 2).contiguous(), weight, group, reduce)


def _stacked(x: Tensor, weight: Tensor, group: str, reduce: str) -> Tensor:
    C = x.shape[1]
    mirrored = (weight, weight.flip(1)) if group == "p4m" else (weight,)
    turned = torch.stack([w.rot90(s, (0, 1)) for w in mirrored for s in range(4)])
    kernels = turned.to(x.dtype).permute(3, 0, 1, 2)  # (C, orientations, 3, 3)
    if reduce == "mean":
        mean = kernels.mean(dim=1, keepdim=True)
        return F.conv2d(x, mean, padding=1, groups=C).permute(0, 2, 3, 1)
    lifted = F.conv2d(x, kernels.flatten(0, 1).unsqueeze(1), padding=1, groups=C)
    return lifted.unflatten(1, (C, -1)).max(dim=2).values.permute(0, 2, 3, 1)


def min_bytes(x, weight, group, reduce) -> dict[str, int]:
    """Forward: x in, y out. Backward: x and the gradient of y in, that of x out."""
    return {"forward": 2 * tensor_bytes(x), "backward": 3 * tensor_bytes(x)}


BENCH = OpBench(
    op="lift_pool",
    fused=lift_pool,
    eager=reference,
    baselines={"stacked filters": stacked, "stacked, channels first": channels_first},
    cases=(
        lift_case("MHVN encoder stage 1, 224", "p4", (4, 56, 56, 96), quick=True),
        lift_case("MHVN encoder stage 2, 224", "p4", (8, 28, 28, 288)),
        lift_case("MHVN encoder stage 3, 224", "p4", (16, 14, 14, 576)),
        lift_case("MHVN last decoder, 224", "p4", (1, 112, 112, 96)),
        lift_case("MHVN encoder stage 1, 540", "p4", (1, 135, 135, 96)),
        lift_case("mirrors, encoder stage 2, 224", "p4m", (8, 28, 28, 288), quick=True),
        lift_case("mean, encoder stage 2, 224", "p4", (8, 28, 28, 288), "mean"),
    ),
    min_bytes=min_bytes,
    limited_by=(
        "instructions that wait for each other, not memory: on data that the caches hold the "
        "forward takes as long, the backward nine tenths; the mean is dwconv_act's convolution"
    ),
)

if __name__ == "__main__":
    run(BENCH)
