"""dwconv_qkv: CvT's and MRL's depthwise projections, training without and inference with norms."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels.nn.dwconv_qkv import dwconv_qkv
from hybrid_kernels.samples import Maker
from python_ref.ops import dwconv_qkv as reference


def projection_case(
    name: str, group: str, size: tuple[int, ...], stride: int = 1, query: bool = True, **options
) -> Case:
    """On maps of `size` (batch, rows, columns, channels), the batch larger on a GPU."""
    C = size[3]

    def build(make: Maker) -> tuple:
        x = make.data(*sized_for(make.device, *size))
        weights = [make.parameter(3, 3, C) for _ in range(3)]
        affines = [make.parameter(2, C) if group == "folded" else None for _ in range(3)]
        if not query:
            weights[0] = affines[0] = None
        return x, *weights, *affines, 1, stride, None

    return Case(name, group, build, **options)


Tokens = tuple[Tensor, ...]


def fused(x, wq, *others) -> Tokens:
    return projected(dwconv_qkv(x, wq, *others), wq)


def eager(x, wq, *others) -> Tokens:
    return tuple(y.to(x.dtype) for y in projected(reference(x, wq, *others), wq))


def projected(tokens: Tokens, wq: Tensor | None) -> Tokens:
    """Without unprojected queries, which are the map itself."""
    return tokens[wq is None :]


def channels_first(x, wq, wk, wv, affine_q, affine_k, affine_v, stride_q, stride_kv, cls):
    """The convolutions on a map (B, C, H, W) in that order of memory, and back."""
    nchw = x.permute(0, 3, 1, 2).contiguous()
    branches = (wq, affine_q, stride_q), (wk, affine_k, stride_kv), (wv, affine_v, stride_kv)
    rows = []
    for weight, affine, stride in branches:
        if weight is None:
            continue
        weight, bias = (weight, None) if affine is None else (weight * affine[0], affine[1])
        kernel = weight.to(x.dtype).permute(2, 0, 1).unsqueeze(1)
        bias = None if bias is None else bias.to(x.dtype)
        y = F.conv2d(nchw, kernel, bias, stride, 1, groups=x.shape[3])
        rows.append(y.permute(0, 2, 3, 1).flatten(1, 2))
    return tuple(rows)


def min_bytes(x, wq, wk, wv, aq, ak, av, stride_q, stride_kv, cls) -> dict[str, int]:
    """Forward: x in, the tokens out. Backward: the tokens' gradients and x in, that of x out."""
    B, H, W, C = x.shape
    tokens = 2 * -(-H // stride_kv) * -(-W // stride_kv) + (H * W if wq is not None else 0)
    tokens *= B * C * x.element_size()
    return {"forward": tensor_bytes(x) + tokens, "backward": 2 * tensor_bytes(x) + tokens}


BENCH = OpBench(
    op="dwconv_qkv",
    fused=fused,
    eager=eager,
    baselines={"channels first": channels_first},
    cases=(
        projection_case("CvT-13 stage 0", "CvT", (4, 56, 56, 64), 2, quick=True),
        projection_case("CvT-13 stage 1", "CvT", (4, 28, 28, 192), 2),
        projection_case("CvT-13 stage 2", "CvT", (8, 14, 14, 384), 2),
        projection_case("CQ+MRL-13 stage 0", "MRL", (8, 14, 14, 64), 1),
        projection_case("MRL-13 stage 1", "MRL", (8, 7, 7, 192), 1, query=False),
        projection_case("MRL-13 stage 2", "MRL", (8, 7, 7, 384), 1, query=False, quick=True),
        projection_case("CvT-13 stage 0, folded", "folded", (4, 56, 56, 64), 2),
        projection_case("CQ+MRL-21 stage 2, folded", "folded", (8, 7, 7, 384), 1),
    ),
    min_bytes=min_bytes,
    limited_by=(
        "composed of other ops: queries that are not strided take a pass of their own, 55 % of the "
        "kernels' time beside 45 % for keys and values (perf, CvT-13 stage 1, float32)"
    ),
)

if __name__ == "__main__":
    run(BENCH)
