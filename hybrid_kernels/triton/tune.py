"""Measure launch settings on this machine's GPU and keep the best: `hybrid-kernels tune`.

Every op is run once to see which kernels and problem classes it needs. Then the candidates of one
kernel after the other are timed in the whole call, everything else at its best so far, and the
result is written to configs/<device>.json, which launches read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton

from hybrid_kernels.triton import launch
from hybrid_kernels.triton.abstract_token_attention import (
    abstract_token_attention,
    abstract_token_attention_backward,
)
from hybrid_kernels.triton.atrous_attention import atrous_attention, atrous_attention_backward
from hybrid_kernels.triton.atrous_partition import atrous_merge, atrous_partition
from hybrid_kernels.triton.gated_fuse import gated_fuse, gated_fuse_backward
from hybrid_kernels.triton.launch import Settings
from hybrid_kernels.triton.multiscale_attention import (
    multiscale_attention,
    multiscale_attention_backward,
)
from hybrid_kernels.triton.single_query_attention import (
    single_query_attention,
    single_query_attention_backward,
)

# (B, H, W, C, heads, dilations) of ACC-ViT tiny's first three stages.
Shape = tuple[int, int, int, int, int, tuple[int, ...]]
SHAPES: tuple[Shape, ...] = (
    (32, 56, 56, 64, 2, (1, 2, 4, 8)),
    (32, 28, 28, 128, 4, (1, 2, 4)),
    (32, 14, 14, 256, 8, (1, 2)),
)
DTYPES = (torch.bfloat16, torch.float32)

# What is tried for each setting; kernels take those of their settings in the tables.
CHOICES: dict[str, dict[str, tuple[int, ...]]] = {
    "abstract_token_attention": {
        "TILE": (16, 32, 64),
        "num_warps": (2, 4, 8),
        "num_stages": (1, 2),
    },
    "atrous_attention": {
        "TILE": (32, 64),
        "OFFSETS": (4, 8, 16),
        "programs": (528, 2112, 8448),
        "num_warps": (2, 4, 8),
        "num_stages": (1, 2),
    },
    "gated_fuse": {
        "TOKENS": (16, 32, 64, 128),
        "CHANNELS": (32, 64, 128),
        "programs": (528, 1056, 2112),
        "TERMS": (16, 64),
        "COLUMNS": (16, 64),
        "num_warps": (2, 4, 8),
    },
    "multiscale_attention": {
        "QUERIES": (32, 64, 128),
        "KEYS": (32, 64),
        "num_warps": (2, 4, 8),
        "num_stages": (1, 2),
    },
    "single_query_attention": {
        "KEYS": (32, 64, 128),
        "programs": (528, 2112, 8448),
        "RUNS": (2, 4, 8, 16),
        "num_warps": (2, 4, 8),
        "num_stages": (1, 2, 3),
    },
    "atrous_partition": {
        "TOKENS": (8, 16, 32, 64, 128),
        "CHANNELS": (32, 64, 128, 256),
        "num_warps": (2, 4, 8),
    },
}


def candidates(op: str, base: Settings) -> Iterator[Settings]:
    """All combinations of the choices for the settings that `base` has."""
    choices = CHOICES[op]
    names = [name for name in base if name in choices]
    for values in itertools.product(*(choices[name] for name in names)):
        yield {**base, **dict(zip(names, values, strict=True))}


def tune(
    ops: Sequence[str] = (),
    shapes: Sequence[Shape] = SHAPES,
    report: Callable[[str], None] = print,
) -> None:
    """Time the candidates of every kernel and write the best to configs/<device>.json.

    Args:
        ops: names of ops; all by default.
        shapes: (B, H, W, C, heads, dilations) of the calls that are timed.
        report: takes one line of text per kernel and problem class.

    Raises:
        ValueError: an op has no Triton kernel.
        RuntimeError: torch sees no CUDA device.
    """
    unknown = [op for op in ops if op not in CHOICES]
    if unknown:
        raise ValueError(f"ops = {list(ops)}: {unknown} not among {list(CHOICES)}")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "tune measures kernels on an NVIDIA GPU, and torch sees none here "
            "(torch.cuda.is_available() is False)"
        )
    name = launch.device_name(torch.device("cuda", torch.cuda.current_device()))
    best = {kernel: dict(classes) for kernel, classes in launch.table(name).items()}
    for op, shape, dtype in itertools.product(ops or CHOICES, shapes, DTYPES):
        call = _call(op, shape, dtype)
        with launch.watching() as used:
            call()
        for kernel, problem in sorted(used):
            settings, before, after = _fastest(call, op, kernel, problem)
            best.setdefault(kernel, {})[problem] = settings
            _write(name, best)
            report(f"{kernel} [{problem}]: {before:.4f} -> {after:.4f} ms {settings}")


def _fastest(
    call: Callable[[], Any], op: str, kernel: str, problem: str
) -> tuple[Settings, float, float]:
    """The best settings of one kernel, and the time of the call before and after, in ms."""
    base = launch.settings(kernel, problem, torch.device("cuda"))
    before = triton.testing.do_bench(call, return_mode="median")
    best, least = base, before
    for candidate in candidates(op, base):
        with launch.trying(kernel, problem, candidate):
            try:
                time = triton.testing.do_bench(call, return_mode="median")
            except triton.runtime.errors.OutOfResources:
                continue  # a tile that this device has no shared memory or registers for
        if time < least:
            best, least = candidate, time
    return best, before, least


def _write(name: str, best: launch.Table) -> None:
    launch.CONFIGS.joinpath(f"{name}.json").write_text(launch.dumps(best))
    launch.table.cache_clear()


def _call(op: str, shape: Shape, dtype: torch.dtype) -> Callable[[], Any]:
    """One forward and backward call on random tensors."""
    B, H, W, C, heads, dilations = shape
    n = len(dilations)

    def data(*sizes: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(sizes, device="cuda", dtype=dtype)

    x = data(B, H, W, C)
    if op == "atrous_attention":
        qkv = data(B, H, W, n, 3, heads, C // heads)
        bias = data(n, 13**2, heads, dtype=torch.float32)
        options = (list(dilations), 7, (C // heads) ** -0.5)
        out, lse = atrous_attention(qkv, bias, *options)

        def attend() -> None:
            atrous_attention(qkv, bias, *options)
            atrous_attention_backward(out, qkv, bias, out, lse, *options, True, True)

        return attend
    if op == "abstract_token_attention":
        qkv = data(B, H, W, 3, heads, C // heads)
        token = data(3, heads, C // heads, dtype=torch.float32)
        scale = (C // heads) ** -0.5
        saved = abstract_token_attention(qkv, token, 7, scale, None)
        inputs = (*saved[:2], qkv, token, None, *saved, None, 7, scale, True, True, False)

        def attend_with_token() -> None:
            abstract_token_attention(qkv, token, 7, scale, None)
            abstract_token_attention_backward(*inputs)

        return attend_with_token
    if op == "multiscale_attention":
        tokens = [data(B, H * W // k**2, heads, C // heads) for k in (1, 2, 3)]
        arguments = (tokens[0], tokens, tokens, (C // heads) ** -0.5)
        out, lse = multiscale_attention(*arguments)

        def attend_over_segments() -> None:
            multiscale_attention(*arguments)
            multiscale_attention_backward(
                out, *arguments[:3], out, lse, arguments[3], True, [True] * 3, [True] * 3
            )

        return attend_over_segments
    if op == "single_query_attention":
        k, v = data(B, H * W, 2, heads, C // heads).unbind(2)
        given = (data(8, heads, C // heads), k, v, (C // heads) ** -0.5, None)
        out, lse = single_query_attention(*given)

        def attend_from_few_queries() -> None:
            single_query_attention(*given)
            single_query_attention_backward(out, *given[:3], out, lse, *given[3:], *[True] * 3)

        return attend_from_few_queries
    if op == "gated_fuse":
        m = [data(B, H, W, C) for _ in dilations]
        weight, bias = data(n, C, dtype=torch.float32), data(n, C, dtype=torch.float32)
        scale = data(B, n, C, dtype=torch.float32)
        inputs = (x, m, weight, bias, scale, True)

        def fuse() -> None:
            gated_fuse(*inputs)
            gated_fuse_backward(x, *inputs, True, [True] * n, True, True)

        return fuse
    return lambda: atrous_merge(atrous_partition(x, 7, dilations[-1], 0.0), H, W, 7, dilations[-1])
