"""partial_combine: PartialFormer's foreground and background, back in the order of the image."""

import torch

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import partial_combine
from hybrid_kernels.samples import Maker
from python_ref.ops import partial_combine as reference


def combine_case(
    name: str, group: str, batch: int, tokens: int, channels: int, foreground: int, **options
) -> Case:
    """A case on `batch` images, more on a GPU, every few tokens a foreground token."""

    def build(make: Maker) -> tuple:
        images = sized_for(make.device, batch)[0]
        x, update = make.data(images, tokens, channels), make.data(images, channels)
        index = torch.arange(0, tokens, tokens // foreground, device=make.device)[:foreground]
        index = index.int().expand(images, -1).contiguous()
        return x, update, make.data(images, foreground, channels), index

    return Case(name, group, build, **options)


def min_bytes(x, update, foreground, index) -> dict[str, int]:
    """Tokens in and tokens out, either way; those of the foreground are read there alone."""
    return {"forward": 2 * tensor_bytes(x), "backward": 2 * tensor_bytes(x)}


BENCH = OpBench(
    op="partial_combine",
    fused=partial_combine,
    eager=reference,
    cases=(
        combine_case("B3 stage 1, 224", "224", 32, 3136, 64, 49, quick=True),
        combine_case("B3 stage 2, 224", "224", 32, 784, 128, 49),
        combine_case("B3 stage 3, 224", "224", 32, 196, 256, 49, quick=True),
        combine_case("B3 stage 1, 1280x800", "dense", 1, 64000, 64, 1000),
        combine_case("B3 stage 3, 1280x800", "dense", 1, 4000, 256, 1000),
    ),
    min_bytes=min_bytes,
    limited_by="not profiled yet",
)

if __name__ == "__main__":
    run(BENCH)
