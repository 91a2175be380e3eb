"""Rows of windows that share an abstract token: row 0 is the token, row 1 + a P + b a pixel.

A program works on one tile of the rows of one window and head. Neighbouring programs take the
heads of one window, whose rows lie side by side in memory.
"""

import triton
import triton.language as tl


@triton.jit
def place(H, W, heads, WINDOW: tl.constexpr, TILES: tl.constexpr):
    """A program's (window among those of all images, image, top, left, head, H, W), 64-bit."""
    program = tl.program_id(0)
    window = program // heads // TILES
    down = tl.cdiv(H, WINDOW)
    across = tl.cdiv(W, WINDOW)
    image = (window // across // down).to(tl.int64)
    top = (window // across % down).to(tl.int64) * WINDOW
    left = (window % across).to(tl.int64) * WINDOW
    return window.to(tl.int64), image, top, left, (program % heads).to(tl.int64), H, W


@triton.jit
def tile_of(heads, TILES: tl.constexpr):
    """A program's tile among those of the window."""
    return tl.program_id(0) // heads % TILES


@triton.jit
def locate(at, row, WINDOW: tl.constexpr):
    """Rows as (row, is on the map, is a pixel outside, pixel row, pixel column)."""
    i = at[2] + (row - 1) // WINDOW
    j = at[3] + (row - 1) % WINDOW
    is_pixel = (row > 0) & (row <= WINDOW * WINDOW)
    inside = is_pixel & (i < at[5]) & (j < at[6])
    return row, inside, is_pixel & (inside == 0), i, j


@triton.jit
def pixels(strides, at, rows, WIDTH: tl.constexpr, CHANNELS: tl.constexpr):
    """Offsets of located rows in a tensor (B, H, W, h, d) of any strides, and which exist."""
    c = tl.arange(0, CHANNELS)
    start = at[1] * strides[0] + at[4] * strides[3]
    pixel = start + rows[3] * strides[1] + rows[4] * strides[2]
    where = pixel[:, None] + (c.to(tl.int64) * strides[4])[None, :]
    return where, rows[1][:, None] & (c < WIDTH)[None, :]


@triton.jit
def load_rows(x, where, mask, first, outside, rows, WIDTH: tl.constexpr):
    """Located rows as (rows, CHANNELS): `first` for row 0, `outside` (None: zeros) for pixels
    outside the map."""
    c = tl.arange(0, where.shape[1])
    values = tl.load(x + where, mask=mask, other=0.0)
    token = tl.load(first + c, mask=c < WIDTH, other=0.0)
    values = tl.where((rows[0] == 0)[:, None], token[None, :], values)
    if outside is not None:
        pad = tl.load(outside + c, mask=c < WIDTH, other=0.0)
        values = tl.where(rows[2][:, None], pad[None, :], values)
    return values


@triton.jit
def store_total(to, values, chosen, WIDTH: tl.constexpr):
    """The sum of the chosen rows."""
    c = tl.arange(0, values.shape[1])
    total = tl.sum(tl.where(chosen[:, None], values, 0.0), axis=0)
    tl.store(to + c, total.to(to.dtype.element_ty), mask=c < WIDTH)
