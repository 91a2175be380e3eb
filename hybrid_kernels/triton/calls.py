"""Calls of every Triton launcher, for a kernel in a problem class of the tables of settings.

The tuner times them, and the tests compile what they launch, on tensors without memory. Shapes are
those that need most of a GPU. An op adds a function that calls its launchers for a problem class,
and a line to `CALLS`.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

DTYPES = {
    "8-bit": torch.float8_e5m2,
    "16-bit": torch.bfloat16,
    "32-bit": torch.float32,
    "64-bit": torch.float64,
}

Call = Callable[[str], None]  # of a problem class
MakeTensor = Callable[[tuple[int, ...], torch.dtype], Tensor]


def without_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Enough for launchers, which only look at shape, strides and dtype."""
    return torch.empty(shape, dtype=dtype, device="meta")


_make: MakeTensor = without_memory


@contextlib.contextmanager
def tensors_from(make: MakeTensor) -> Iterator[None]:
    """Calls get their tensors from `make`; without it, tensors without memory."""
    global _make
    _make = make
    try:
        yield
    finally:
        _make = without_memory


def data(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return _make(shape, dtype)


def attention(problem: str, window: int, size: int) -> None:
    from hybrid_kernels.triton import atrous_attention as op

    bits, width = problem.split(", e <= ")
    n, heads, dilations = 4, 2, (1, 2, 4, 8)
    qkv = data(8, size, size, n, 3, heads, int(width), dtype=DTYPES[bits])
    bias = data(n, (2 * window - 1) ** 2, heads)
    out, lse = op.atrous_attention(qkv, bias, dilations, window, 0.25)
    op.atrous_attention_backward(out, qkv, bias, out, lse, dilations, window, 0.25, True, True)


def fold_of_attention(problem: str) -> None:
    slots = int(problem.removeprefix("T <= "))
    attention("16-bit, e <= 32", window={16: 4, 32: 5, 64: 7, 128: 11, 256: 16}[slots], size=60)


def attention_with_token(problem: str, window: int) -> None:
    from hybrid_kernels.triton import abstract_token_attention as op

    bits, width = problem.split(", e <= ")
    d, dtype = int(width), DTYPES[bits]
    qkv, token, pad_kv = data(8, 30, 31, 3, 4, d, dtype=dtype), data(3, 4, d), data(2, 4, d)
    out, summary, lse = op.abstract_token_attention(qkv, token, window, 0.25, pad_kv)
    saved = (out, summary, qkv, token, pad_kv, out, summary, lse, out)
    op.abstract_token_attention_backward(*saved, window, 0.25, True, True, True)


def attention_over_segments(problem: str) -> None:
    from hybrid_kernels.triton import multiscale_attention as op

    bits, width = problem.split(", e <= ")
    d, dtype = int(width), DTYPES[bits]
    q = data(8, 200, 4, d, dtype=dtype)
    ks = vs = [data(8, keys, 4, d, dtype=dtype) for keys in (200, 56, 30)]
    out, lse = op.multiscale_attention(q, ks, vs, 0.25)
    needs = [True] * 3
    op.multiscale_attention_backward(out, q, ks, vs, out, lse, 0.25, True, needs, needs)


def attention_of_mixed_heads(problem: str) -> None:
    from hybrid_kernels.triton import mixed_head_attention as op

    h, g, dtype = 24, 48, DTYPES[problem]
    rows, w1, w2 = (data(*size, dtype=dtype) for size in ((8, 200, h, 32), (g, h), (h, g)))
    inputs = (rows, rows, rows, w1, w1[:, 0], w2, w2[:, 0])
    out, lse = op.mixed_head_attention(*inputs, 0.25)
    op.mixed_head_attention_backward(out, *inputs, lse, 0.25, True, True, True)


def attention_of_few_queries(problem: str) -> None:
    from hybrid_kernels.triton import single_query_attention as op

    bits, width = problem.split(", e <= ")
    query, tokens = (data(8, n, 4, int(width), dtype=DTYPES[bits]) for n in (8, 3000))
    exclude = data(8, 100, dtype=torch.int64)
    out, lse = op.single_query_attention(query, tokens, tokens, 0.25, exclude)
    op.single_query_attention_backward(
        out, query, tokens, tokens, out, lse, 0.25, exclude, True, True, True
    )


def pooling_of_few_queries(problem: str) -> None:
    from hybrid_kernels.triton import single_query_attention_absorbed as op

    bits, width = problem.split(", e <= ")
    query, x = (data(8, n, int(width), dtype=DTYPES[bits]) for n in (16, 3000))
    out, lse = op.single_query_pool(query, x, 0.25, None)
    op.single_query_pool_backward(out, query, x, out, lse, 0.25, None, True, True)


def attention_of_generated_weights(problem: str) -> None:
    from hybrid_kernels.triton import conv_attention as op

    heads, width = 2, int(problem.removeprefix("d <= "))
    v = data(8, 14, 14, heads * width, dtype=torch.bfloat16)
    logits = data(8, 7, 7, heads, 9, 9, dtype=torch.bfloat16)
    y = op.conv_attention(v, logits, 0.25, 3, 2, 1)
    op.conv_attention_backward(y, v, logits, 0.25, 3, 2, 1, True, True)


def attention_of_a_map(problem: str) -> None:
    from hybrid_kernels.triton import conv_attention_fused as op

    bits, *width = problem.split(", d <= ")
    heads, dtype = 2, DTYPES[bits]
    C = heads * int(width[0]) if width else 96
    x = data(8, 14, 14, C, dtype=dtype)
    rows = (81 * heads, C), (81 * heads,), (C, C)
    weights = [data(*shape, dtype=dtype) for shape in ((3, 3, C), *rows)]
    y = op.conv_attention_fused(x, *weights, heads, 0.25)
    op.conv_attention_fused_backward(y, x, *weights, heads, 0.25, True, True, True, True)


def partition(problem: str) -> None:
    from hybrid_kernels.triton import atrous_partition as op

    x = data(8, 50, 50, 96, dtype=DTYPES[problem])
    op.atrous_merge(op.atrous_partition(x, 7, 2, 0.0), 50, 50, 7, 2)


def fuse(problem: str) -> None:
    from hybrid_kernels.triton import gated_fuse as op

    x, n = data(8, 50, 50, 96, dtype=DTYPES[problem]), 8
    inputs = (x, [x] * n, data(n, 96), data(n, 96), data(8, n, 96), True)
    op.gated_fuse(*inputs)
    op.gated_fuse_backward(x, *inputs, True, [True] * n, True, True)


def combine(problem: str) -> None:
    from hybrid_kernels.triton import partial_combine as op

    x, foreground = (data(8, n, 96, dtype=DTYPES[problem]) for n in (3000, 100))
    index = data(8, 100, dtype=torch.int32)
    op.partial_combine(x, data(8, 96, dtype=x.dtype), foreground, index)
    op.partial_combine_backward(x, index, True, True, True)


def fuse_tokens(problem: str) -> None:
    from hybrid_kernels.triton import token_fusion as op

    bits, width = problem.split(", e <= ")
    q = data(8, 3000, 4, int(width), dtype=DTYPES[bits])
    kv = data(8, 100, 2, 4, int(width), dtype=DTYPES[bits])
    op.token_fusion(q, kv, q, 0.25)
    op.token_fusion_backward(q, q, kv, 0.25, True, True)


def propagate(problem: str) -> None:
    from hybrid_kernels.triton import group_propagate as op

    bits, _, width = problem.partition(", e <= ")
    d, dtype = int(width or 32), DTYPES[bits]
    x, kv = data(8, 50, 50, 3 * d, dtype=dtype), data(8, 8, 2, 3, d, dtype=dtype)
    convs = [data(*size, 3 * d) for size in ((3, 3), (), (5, 5), ())]
    op.group_propagate(x, *convs, kv, kv, 0.25)
    op.group_propagate_backward(x, x, *convs, kv, kv, 0.25, True, True, True)


def choose(problem: str) -> None:
    from hybrid_kernels.triton import context_topk as op

    bits = "16-bit" if problem == "16-bit" else "32-bit"  # the select's keys are always 64-bit
    op.context_topk(data(8, 3000, 96, dtype=DTYPES[bits]), 100)


def pool(problem: str) -> None:
    from hybrid_kernels.triton import pool_cat as op

    xs = [data(8, size, size, 96, dtype=DTYPES[problem]) for size in (50, 25)]
    op.pool_cat_backward(op.pool_cat(xs, 7, 7), xs, 7, 7, [True, True])


def embed_patches(problem: str) -> None:
    from hybrid_kernels.triton import patch_embed as op

    x, weight = (data(*shape, dtype=DTYPES[problem]) for shape in ((8, 50, 50, 96), (64, 96)))
    for kind in ("max", "avg"):
        z, index, pooled = op.patch_embed(x, weight, 4, kind, "ceil")
        call = (z, pooled, weight, index, *x.shape[1:3], 4, kind, "ceil")
        op.patch_embed_backward(*call, True, True)


def dilated(problem: str) -> None:
    from hybrid_kernels.triton import atrous_dwconv as op

    x, weight = data(8, 50, 50, 96, dtype=DTYPES[problem]), data(3, 96, 3, 3)
    ys = op.atrous_dwconv(x, weight, [1, 2, 3], 2)
    op.atrous_dwconv_backward(ys, x, weight, [1, 2, 3], 2, True, True)


def depthwise(problem: str) -> None:
    from hybrid_kernels.triton import dwconv_act as op

    x, weight, bias = data(8, 50, 50, 96, dtype=DTYPES[problem]), data(3, 3, 96), data(96)
    op.dwconv_act(x, weight, bias, "gelu")
    op.dwconv_act_backward(x, x, weight, bias, "gelu", True, True, True)


def centred_depthwise(problem: str) -> None:
    from hybrid_kernels.triton import centred_dwconv as op

    x, weight = data(8, 50, 50, 96, dtype=DTYPES[problem]), data(3, 3, 96)
    y, mean = op.centred_dwconv(x, weight)
    op.centred_dwconv_backward(y, x, weight, mean, True, True)


def spread_and_join(problem: str) -> None:
    from hybrid_kernels.triton import propagate_cat as op

    dtype = DTYPES[problem]
    maps = [data(8, n, n, 96, dtype=dtype) for n in (25, 50)]
    inputs = maps, [data(2, 2, 96)], [True, False], 50, 50
    y = op.propagate_cat(*inputs)
    op.propagate_cat_backward(y, *inputs, [True, True], [True])


def downsample(problem: str, norm: bool) -> None:
    from hybrid_kernels.triton import downsample_pair as op

    x, vector = data(8, 50, 50, 96, dtype=DTYPES[problem]), data(96)
    affine = [vector] * 2 if norm else [None] * 2
    inputs = (x, data(3, 3, 96), data(5, 5, 96), *affine)
    op.downsample_pair_backward(*op.downsample_pair(*inputs), *inputs, True, True, norm)


def sample_points(problem: str) -> None:
    from hybrid_kernels.triton import bilinear_sample as op

    x, offset = data(8, 50, 50, 96, dtype=DTYPES[problem]), data(8, 25, 25, 2)
    op.bilinear_sample_backward(op.bilinear_sample(x, offset), x, offset, True, True)


def add_path(problem: str, norm: bool) -> None:
    from hybrid_kernels.triton import value_conv as op

    x, vector = data(8, 50, 50, 96, dtype=DTYPES[problem]), data(96)
    inputs = (x, x, data(3, 3, 96), vector, *([vector] * 2 if norm else [None] * 2))
    op.value_conv(*inputs)
    op.value_conv_backward(x, *inputs, True, True, True, norm)


def inject(problem: str) -> None:
    from hybrid_kernels.triton import inject_fuse as op

    local, coarse = (data(8, n, n, 96, dtype=DTYPES[problem]) for n in (50, 7))
    op.inject_fuse_backward(
        op.inject_fuse(local, coarse, coarse), local, coarse, coarse, True, True, True
    )


def lift(problem: str, group: str) -> None:
    from hybrid_kernels.triton import lift_pool as op

    x, weight = data(8, 50, 50, 96, dtype=DTYPES[problem]), data(3, 3, 96)
    op.lift_pool_backward(
        op.lift_pool(x, weight, group, "max"), x, weight, group, "max", True, True
    )


def mix_regions(problem: str, needs: tuple[bool, ...] = (True,) * 4) -> None:
    from hybrid_kernels.triton import region_mix as op

    bits, _, side = problem.partition(", k = ")
    k, dtype = int(side or 3), DTYPES[bits]
    x, g = data(8, 50, 50, 96, dtype=dtype), data(8, 13, 13, 96, dtype=dtype)
    inputs = (x, g, data(k, k, 96), 4)
    op.region_mix_backward(op.region_mix(*inputs, data(96)), *inputs, *needs)


def sample_regions(problem: str) -> None:
    from hybrid_kernels.triton import region_sample as op

    x, weight = data(8, 50, 50, 96, dtype=DTYPES[problem]), data(4, 4, 96)
    s = op.region_sample(x, weight, data(96))
    op.region_sample_backward(s, x, weight, x, True, True, True)


# The calls that launch the kernels whose names begin so, in the forms that need most registers:
# ragged maps mask keys in the loop, and windows beyond one tile run other code than those within.
CALLS: dict[str, tuple[Call, ...]] = {
    "abstract_token_attention": (
        lambda p: attention_with_token(p, 7),
        lambda p: attention_with_token(p, 12),
    ),
    "atrous_attention.forward": (lambda p: attention(p, 7, 60), lambda p: attention(p, 12, 60)),
    "atrous_attention.pairs": (lambda p: attention(p, 7, 60), lambda p: attention(p, 12, 60)),
    "atrous_attention.by_": (lambda p: attention(p, 12, 60),),
    "atrous_attention.fold": (fold_of_attention,),
    "atrous_dwconv": (dilated,),
    "atrous_partition": (partition,),
    "bilinear_sample": (sample_points,),
    "centred_dwconv": (centred_depthwise,),
    "context_topk": (choose,),
    "conv_attention_fused": (attention_of_a_map,),
    "conv_attention": (attention_of_generated_weights,),
    "downsample_pair": (lambda p: downsample(p, True), lambda p: downsample(p, False)),
    "dwconv_act": (depthwise,),
    "gated_fuse": (fuse,),
    "group_propagate": (propagate,),
    "inject_fuse": (inject,),
    "lift_pool": (lambda p: lift(p, "p4"), lambda p: lift(p, "p4m")),
    "mixed_head_attention": (attention_of_mixed_heads,),
    "multiscale_attention": (attention_over_segments,),
    "partial_combine": (combine,),
    "patch_embed": (embed_patches,),
    "pool_cat": (pool,),
    "propagate_cat": (spread_and_join,),
    "reduction": (fuse,),
    "region_mix": (mix_regions, lambda p: mix_regions(p, (True, True, False, False))),
    "region_sample": (sample_regions,),
    "single_query_attention": (attention_of_few_queries, pooling_of_few_queries),
    "token_fusion": (fuse_tokens,),
    "value_conv": (lambda p: add_path(p, True), lambda p: add_path(p, False)),
}


def calls(kernel: str) -> tuple[Call, ...]:
    """Calls that launch a kernel in its problem class."""
    return next(found for prefix, found in CALLS.items() if kernel.startswith(prefix))
