"""inject_fuse: semantics of MSCSA's grid injected into the maps of a backbone's stages."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import inject_fuse
from hybrid_kernels.samples import Maker
from python_ref.ops import inject_fuse as reference


def stage_case(
    name: str, group: str, batch: int, image: tuple[int, int], stride: int, width: int, **options
) -> Case:
    """A stage of the given stride and the grid of stride 32; more images on a GPU."""

    def build(make: Maker) -> tuple:
        (images,) = sized_for(make.device, batch)
        fine, coarse = ([-(-n // s) for n in image] for s in (stride, 32))
        # Logits within the slope of the hard sigmoid: at its corners rounding decides.
        logit = 0.5 * make.data(images, *coarse, width)
        return make.data(images, *fine, width), logit, make.data(images, *coarse, width)

    return Case(name, group, build, **options)


def channels_first(local: Tensor, logit: Tensor, offset: Tensor) -> Tensor:
    """The enlargements of maps (B, C, H, W) in that order of memory, and back."""
    fine, gate, added = (
        x.permute(0, 3, 1, 2).contiguous() for x in (local, F.hardsigmoid(logit), offset)
    )
    gate, added = (
        F.interpolate(x, fine.shape[2:], mode="bilinear", align_corners=False)
        for x in (gate, added)
    )
    return (fine * gate + added).permute(0, 2, 3, 1)


def min_bytes(local, logit, offset) -> dict[str, int]:
    """Forward: the maps in, the result out. Backward: the maps but offset, and the gradient, in;
    the gradients of all out."""
    coarse = tensor_bytes(logit)
    return {
        "forward": 2 * tensor_bytes(local) + 2 * coarse,
        "backward": 3 * tensor_bytes(local) + 3 * coarse,
    }


BENCH = OpBench(
    op="inject_fuse",
    fused=inject_fuse,
    eager=reference,
    baselines={"channels first": channels_first},
    cases=(
        stage_case("PVTv2-B1 stage 1, 224, batch 8", "224", 8, (224, 224), 4, 40, quick=True),
        stage_case("PVTv2-B1 stage 3, 224, batch 8", "224", 8, (224, 224), 16, 200),
        stage_case("PVTv2-B2 stage 1, 800x1280", "dense", 1, (800, 1280), 4, 64, quick=True),
        stage_case("PVTv2-B2 stage 2, 800x1280", "dense", 1, (800, 1280), 8, 128),
        stage_case("PVTv2-B2 stage 3, 800x1280", "dense", 1, (800, 1280), 16, 320),
        stage_case("PVTv2-B2 stage 4, 800x1280", "dense", 1, (800, 1280), 32, 512),
        stage_case("TopFormer-B stride 8, 512", "dense", 2, (512, 512), 8, 256),
    ),
    min_bytes=min_bytes,
    limited_by="not profiled yet",
)

if __name__ == "__main__":
    run(BENCH)
