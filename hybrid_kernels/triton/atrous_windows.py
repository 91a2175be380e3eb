"""Where the windows of atrous attention lie, and their scores: shared by forward and backward.

A branch of dilation d has one window per phase (p, q) and place (u, v); its slot (a, b) is pixel
((u P + a) d + p, (v P + b) d + q), if that lies inside the map. Phases beyond the map are not
counted. All phases get the same number of places, ceil(H / (P d)) by ceil(W / (P d)): the few
windows that are empty in the last place of a ragged map store nothing.

Windows are counted with the phase running fastest, so that neighbouring programs read neighbouring
pixels. Work is cut into shares: some consecutive windows of one branch and one head.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def window_count(B, H, W, d, WINDOW: tl.constexpr):
    """Windows of a branch of dilation d over all images."""
    rows = tl.minimum(H, d) * tl.cdiv(H, WINDOW * d)
    columns = tl.minimum(W, d) * tl.cdiv(W, WINDOW * d)
    return B * rows * columns


@triton.jit
def share(index, B, H, W, heads, per_share, DILATIONS: tl.constexpr, WINDOW: tl.constexpr):
    """Branch (64-bit), its dilation, head (64-bit), windows [begin, end) of one share."""
    branch = 0
    dilation = 1
    begin = 0
    end = 0
    first = 0  # first share of branch k; a branch has whole multiples of `heads` shares
    for k in tl.static_range(len(DILATIONS)):
        windows = window_count(B, H, W, DILATIONS[k], WINDOW)
        reached = index >= first
        branch = tl.where(reached, k, branch)
        dilation = tl.where(reached, DILATIONS[k], dilation)
        begin = tl.where(reached, (index - first) // heads * per_share, begin)
        end = tl.where(reached, windows, end)
        first += tl.cdiv(windows, per_share) * heads
    end = tl.minimum(begin + per_share, end)
    return branch.to(tl.int64), dilation, (index % heads).to(tl.int64), begin, end


@triton.jit
def shares_of(branch, B, H, W, per_share, DILATIONS: tl.constexpr, WINDOW: tl.constexpr):
    """Shares of one head before a branch, and those of the branch: the order of `share`."""
    before = 0
    own = 0
    for k in tl.static_range(len(DILATIONS)):
        shares = tl.cdiv(window_count(B, H, W, DILATIONS[k], WINDOW), per_share)
        before += tl.where(k < branch, shares, 0)
        own += tl.where(k == branch, shares, 0)
    return before, own


@triton.jit
def locate(
    item, slot, H, W, dilation, WINDOW: tl.constexpr, RAGGED: tl.constexpr, INDEX: tl.constexpr
):
    """Slots of one window: (image, top, left) of the window, rows below, columns right, exists.

    The first three are 64-bit scalars, so that the offsets of slots within a window, which are the
    same for every window, fit in 32 bits (INDEX) unless the map is huge.
    """
    phase_rows = tl.minimum(H, dilation)
    phase_columns = tl.minimum(W, dilation)
    rows = tl.cdiv(H, WINDOW * dilation)
    columns = tl.cdiv(W, WINDOW * dilation)
    place = item // (phase_columns * phase_rows)
    image = place // (columns * rows)
    top = place // columns % rows * WINDOW * dilation + item // phase_columns % phase_rows
    left = place % columns * WINDOW * dilation + item % phase_columns
    exists = slot < WINDOW * WINDOW
    if RAGGED:
        inner_rows = tl.minimum(tl.cdiv(tl.maximum(H - top, 0), dilation), WINDOW)
        inner_columns = tl.cdiv(tl.maximum(W - left, 0), dilation)
        exists = (slot < inner_rows * WINDOW) & (slot % WINDOW < inner_columns)
    below = (slot // WINDOW * dilation).to(INDEX)
    right = (slot % WINDOW * dilation).to(INDEX)
    return image.to(tl.int64), top.to(tl.int64), left.to(tl.int64), below, right, exists


@triton.jit
def window_start(at, branch, head, strides):
    """Offset of a window's first slot in a tensor (B, H, W, n, h, ...) of any strides."""
    pixel = at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2]
    return pixel + branch * strides[3] + head * strides[4]


@triton.jit
def slot_offset(at, strides):
    """Offset of located slots from their window's first slot."""
    return at[3] * strides[1] + at[4] * strides[2]


@triton.jit
def gather(x, strides, at, branch, head, HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr):
    """Located rows of a tensor (B, H, W, n, h, e), as (slots, CHANNELS); 0 where there is none."""
    c = tl.arange(0, CHANNELS)
    mask = at[5][:, None] & (c < HEAD_DIM)[None, :]
    where = slot_offset(at, strides)[:, None] + (c.to(at[3].dtype) * strides[5])[None, :]
    return tl.load(x + window_start(at, branch, head, strides) + where, mask=mask, other=0.0)


@triton.jit
def scatter(x, strides, values, at, branch, head, HEAD_DIM: tl.constexpr):
    """The inverse of `gather`; values are rounded to x's dtype."""
    c = tl.arange(0, values.shape[1])
    mask = at[5][:, None] & (c < HEAD_DIM)[None, :]
    where = slot_offset(at, strides)[:, None] + (c.to(at[3].dtype) * strides[5])[None, :]
    x += window_start(at, branch, head, strides)
    tl.store(x + where, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def position_bias(bias, branch, head, heads, query, key, WINDOW: tl.constexpr):
    """Bias of every pair of slots (queries, keys), base 2; -inf where the tile has no such key."""
    table = tl.zeros((query.shape[0], key.shape[0]), tl.float32)
    if bias is not None:
        SIDE: tl.constexpr = 2 * WINDOW - 1
        # r(s, t) is a sum of one term for the query and one for the key: no arithmetic by pairs.
        # The padding of a tile reads the bias of the last slot.
        s = tl.minimum(query, WINDOW * WINDOW - 1)
        t = tl.minimum(key, WINDOW * WINDOW - 1)
        query_term = (s // WINDOW + WINDOW - 1) * SIDE + s % WINDOW + WINDOW - 1
        key_term = t // WINDOW * SIDE + t % WINDOW
        index = (query_term * heads)[:, None] - (key_term * heads)[None, :]
        table += tl.load(bias + (branch * SIDE * SIDE * heads + head) + index) * LOG2_E
    return tl.where((key < WINDOW * WINDOW)[None, :], table, float("-inf"))


@triton.jit
def scores(q, k, table, key_exists, scale, RAGGED: tl.constexpr):
    """Base-2 scores (queries, keys), -inf for keys outside the map."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E) + table
    if RAGGED:
        s = tl.where(key_exists[None, :], s, float("-inf"))
    return s
