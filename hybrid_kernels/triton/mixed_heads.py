"""Blocks of heads of some queries and keys in Triton, and layers across them.

Tiles are (heads, queries, keys), of `BLOCK` heads or mixed heads; a layer is a product with the
tile's columns of heads. A mixed head needs all heads and the other way round, so blocks of one kind
are computed again for every block of the other: with up to 16 heads that is once. Several values go
together:

    rows    q, k, v and in the backward the gradient of out: (tensor (B, M, h, d), strides) each
    layers  w1 (g, h), b1 (g,), w2 (h, g), b2 (h,), contiguous
    tile    image, queries, which of them exist, keys, which of them exist
    sizes   tokens, heads, mixed heads, scale
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import check_dtype, check_index, launch, settings
from hybrid_kernels.triton.token_rows import LOG2_E

BLOCK = tl.constexpr(16)  # heads, or mixed heads
CHUNK = tl.constexpr(16)  # channels


@triton.jit
def _places(x, image, token, head, c):
    """Addresses (heads, tokens, channels) in x = (tensor (B, M, h, d), its strides)."""
    rows = head.to(tl.int64)[:, None] * x[1][2] + token.to(tl.int64)[None, :] * x[1][1]
    return x[0] + image * x[1][0] + rows[:, :, None] + (c.to(tl.int64) * x[1][3])[None, None, :]


@triton.jit
def load_heads(x, image, token, exists, block, heads, first, D: tl.constexpr):
    """Channels `first` and on of tokens, heads `block` and on: (BLOCK, tokens, CHUNK); 0 beyond."""
    head, c = block + tl.arange(0, BLOCK), first + tl.arange(0, CHUNK)
    mask = ((head < heads)[:, None] & exists[None, :])[:, :, None] & (c < D)[None, None, :]
    return tl.load(_places(x, image, token, head, c), mask=mask, other=0.0)


@triton.jit
def store_heads(x, values, image, token, exists, block, heads, first, D: tl.constexpr):
    """The inverse of `load_heads`; values are rounded to the tensor's dtype."""
    head, c = block + tl.arange(0, BLOCK), first + tl.arange(0, CHUNK)
    mask = ((head < heads)[:, None] & exists[None, :])[:, :, None] & (c < D)[None, None, :]
    where = _places(x, image, token, head, c)
    tl.store(where, values.to(x[0].dtype.element_ty), mask=mask)


@triton.jit
def token_products(a, b, tile, block, heads, D: tl.constexpr):
    """Products of a's queries with b's keys, head by head: (BLOCK, queries, keys)."""
    total = tl.zeros((BLOCK, tile[1].shape[0], tile[3].shape[0]), tl.float32)
    for first in range(0, D, CHUNK):
        left = load_heads(a, tile[0], tile[1], tile[2], block, heads, first, D)
        right = load_heads(b, tile[0], tile[3], tile[4], block, heads, first, D)
        total += tl.dot(left, tl.permute(right, (0, 2, 1)), input_precision="ieee")
    return total


@triton.jit
def load_layer(w, row, rows, row_step, column, columns, column_step):
    """Blocks of rows and columns of a layer, or of its transpose by swapped steps; 0 beyond."""
    i, j = row + tl.arange(0, BLOCK), column + tl.arange(0, BLOCK)
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    where = i[:, None] * row_step + j[None, :] * column_step
    return tl.load(w + where, mask=mask, other=0.0)


@triton.jit
def load_bias(b, first, count):
    """A block of a bias in float32; 0 beyond."""
    i = first + tl.arange(0, BLOCK)
    return tl.load(b + i, mask=i < count, other=0.0).to(tl.float32)


@triton.jit
def across(layer, tile):
    """A layer (rows, heads) applied to a tile (heads, queries, keys): (rows, queries, keys)."""
    columns = tl.reshape(tile.to(layer.dtype), (tile.shape[0], tile.shape[1] * tile.shape[2]))
    mixed = tl.dot(layer, columns, input_precision="ieee")
    return tl.reshape(mixed, (layer.shape[0], tile.shape[1], tile.shape[2]))


@triton.jit
def load_statistic(x, tile, sizes, first, other):
    """Of x (B, g, M), a block of mixed heads: (BLOCK, queries)."""
    g = first + tl.arange(0, BLOCK)
    where = ((tile[0] * sizes[2] + g) * sizes[0])[:, None] + tile[1][None, :]
    return tl.load(x + where, mask=(g < sizes[2])[:, None] & tile[2][None, :], other=other)


@triton.jit
def store_statistic(x, values, image, query, exists, sizes, first):
    """The inverse of `load_statistic`."""
    g = first + tl.arange(0, BLOCK)
    where = ((image * sizes[2] + g) * sizes[0])[:, None] + query[None, :]
    tl.store(x + where, values, mask=(g < sizes[2])[:, None] & exists[None, :])


@triton.jit
def logits(rows, layers, tile, sizes, first, D: tl.constexpr):
    """Z without bias, base 2, of a block of mixed heads."""
    z = tl.zeros((BLOCK, tile[1].shape[0], tile[3].shape[0]), tl.float32)
    for block in range(0, sizes[1], BLOCK):
        layer = load_layer(layers[0], first, sizes[2], sizes[1], block, sizes[1], 1)
        s = token_products(rows[0], rows[1], tile, block, sizes[1], D) * sizes[3]
        z += across(layer, s)
    return z * LOG2_E


@triton.jit
def weights(rows, layers, lse, tile, sizes, first, D: tl.constexpr):
    """P of a block of mixed heads; 0 where a query or key is missing."""
    bias = load_bias(layers[1], first, sizes[2])
    shift = (bias[:, None] - load_statistic(lse, tile, sizes, first, float("inf"))) * LOG2_E
    p = tl.exp2(logits(rows, layers, tile, sizes, first, D) + shift[:, :, None])
    return tl.where(tile[4][None, None, :], p, 0.0)


@triton.jit
def mixed_again(rows, layers, lse, tile, sizes, block, D: tl.constexpr):
    """A of a block of heads."""
    a = tl.zeros((BLOCK, tile[1].shape[0], tile[3].shape[0]), tl.float32)
    for first in range(0, sizes[2], BLOCK):
        layer = load_layer(layers[2], block, sizes[1], sizes[2], first, sizes[2], 1)
        a += across(layer, weights(rows, layers, lse, tile, sizes, first, D))
    return a + load_bias(layers[3], block, sizes[1])[:, None, None]


@triton.jit
def tile_of_tokens(tokens, parts, TILE: tl.constexpr):
    """Image (64-bit), tokens of the tile, which of them exist, and which of `parts` parts."""
    program = tl.program_id(0)
    tiles = tl.cdiv(tokens, TILE)
    image = (program // parts // tiles).to(tl.int64)
    token = program // parts % tiles * TILE + tl.arange(0, TILE)
    return image, token, token < tokens, program % parts


def plan(kernel: str, q: Tensor) -> dict[str, Any]:
    """Launch settings, and the width of a head."""
    check_dtype("q", q)
    check_index("tokens", q.shape[1])
    bits = f"{torch.finfo(q.dtype).bits}-bit"
    return {"D": q.shape[3], **settings(f"mixed_head_attention.{kernel}", bits, q.device)}


def launch_by_mixed_head(
    name: str, kernel: Any, q: Tensor, w1: Tensor, args: tuple, scale: float
) -> None:
    """Run a kernel on tiles of queries of every image and blocks of mixed heads."""
    chosen, (B, M, h, _), g = plan(name, q), q.shape, w1.shape[0]
    blocks = triton.cdiv(g, BLOCK.value)
    programs = B * triton.cdiv(M, chosen["QUERIES"]) * blocks
    launch(kernel, programs, q, *args, M, h, g, scale, blocks, **chosen)


def launch_by_head(
    name: str, kernel: Any, tile: str, q: Tensor, w1: Tensor, args: tuple, scale: float
) -> None:
    """Run a kernel on tiles of queries or keys of every image, chunks and blocks of heads."""
    chosen, (B, M, h, d), g = plan(name, q), q.shape, w1.shape[0]
    chunks, blocks = triton.cdiv(d, CHUNK.value), triton.cdiv(h, BLOCK.value)
    programs = B * triton.cdiv(M, chosen[tile]) * chunks * blocks
    launch(kernel, programs, q, *args, M, h, g, scale, chunks, chunks * blocks, **chosen)
