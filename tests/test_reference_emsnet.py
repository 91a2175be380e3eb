"""EMSNet's operators beside its attention, against other ways to write them, in float64."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from reference_checks import TOLERANCE, check_equal, gradients, random

from python_ref.layers import to_nchw as nchw
from python_ref.layers import to_nhwc as nhwc
from python_ref.ops import (
    centred_dwconv,
    centred_dwconv_backward,
    centred_dwconv_out,
    patch_embed,
    patch_embed_backward,
    propagate,
    propagate_cat,
    propagate_cat_backward,
    propagate_conv,
    propagate_conv_backward,
    strip_dwconv,
    strip_dwconv_backward,
    whiten_conv,
    whiten_conv_backward,
)

SIZES = [(1, 1), (2, 2), (3, 5), (6, 4), (7, 9), (1, 6)]
every_size = pytest.mark.parametrize(("height", "width"), SIZES)


def pooled_by_torch(x, weight, patch, kind):
    pools = {
        "max": lambda t: F.max_pool2d(t, patch, ceil_mode=True),
        "avg": lambda t: F.avg_pool2d(t, patch, ceil_mode=True, count_include_pad=False),
    }
    return nhwc(F.conv2d(pools[kind](nchw(x)), weight[:, :, None, None]))


@every_size
@pytest.mark.parametrize("patch", [1, 2, 4, 6])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_patch_embedding_equals_pooling_and_a_convolution(height, width, patch, kind):
    torch.manual_seed(0)
    check_equal(
        lambda x, weight: patch_embed(x, weight, patch, kind)[0],
        lambda x, weight: pooled_by_torch(x, weight, patch, kind),
        (random(2, height, width, 3, grad=True), random(5, 3, grad=True)),
    )


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(("pool_mode", "patch"), [("ceil", 2), ("ceil", 4), ("floor", 4)])
def test_patch_embedding_backward_formulas_equal_autograd(kind, pool_mode, patch):
    torch.manual_seed(0)
    x, weight = random(2, 7, 9, 3, grad=True), random(5, 3, grad=True)
    z, index, pooled = patch_embed(x, weight, patch, kind, pool_mode)
    grad = torch.randn_like(z)
    expected = gradients(z, (x, weight), (grad,))
    arguments = (grad, pooled, weight, index, 7, 9, patch, kind, pool_mode)
    with torch.no_grad():
        found = patch_embed_backward(*arguments, True, True)
        no_x, no_weight = patch_embed_backward(*arguments, False, False)
    torch.testing.assert_close(list(found), expected, **TOLERANCE)
    assert no_x.shape == no_weight.shape == (0,)


def test_the_last_patch_has_fewer_pixels():
    x = torch.arange(1.0, 8.0).reshape(1, 7, 1, 1)
    average, *_ = patch_embed(x, torch.ones(1, 1), 4, "avg")
    largest, index, _ = patch_embed(-x, torch.ones(1, 1), 4, "max")
    assert average.flatten().tolist() == [2.5, 6.0]
    assert largest.flatten().tolist() == [-1.0, -5.0]
    assert index.dtype == torch.uint8


def test_floor_leaves_the_border_out():
    x = random(1, 7, 9, 2)
    floor, *_ = patch_embed(x, torch.eye(2).double(), 4, "avg", "floor")
    whole, *_ = patch_embed(x[:, :4, :8], torch.eye(2).double(), 4, "avg")
    assert torch.equal(floor, whole)


@pytest.mark.parametrize(
    ("pixels", "winner"),
    [([1, 3, 3, 2], 1), ([5, 5, 5, 5], 0), ([1, float("nan"), 9, 2], 1)],
    ids=["first of two", "first of all", "NaN"],
)
def test_the_first_maximum_wins_and_nan_beats_numbers(pixels, winner):
    x = torch.tensor(pixels, dtype=torch.float64).reshape(1, 2, 2, 1).requires_grad_()
    one = torch.ones(1, 1, dtype=torch.float64)
    z, index, pooled = patch_embed(x, one, 2, "max")
    expected, torch_index = F.max_pool2d(nchw(x), 2, return_indices=True)
    assert index.item() == torch_index.item() == winner
    torch.testing.assert_close(z.flatten(), expected.flatten(), equal_nan=True)
    call = (torch.ones_like(z), pooled, one, index, 2, 2, 2, "max", "ceil")
    grad, _ = patch_embed_backward(*call, True, False)
    assert grad.flatten().tolist() == [float(slot == winner) for slot in range(4)]


@every_size
@pytest.mark.parametrize("side", [1, 3, 5])
def test_strip_convolutions_equal_one_with_their_outer_product(height, width, side):
    torch.manual_seed(0)

    def outer_product(x, horizontal, vertical):
        kernel = torch.einsum("bc,ac->cab", horizontal, vertical).unsqueeze(1)
        return nhwc(F.conv2d(nchw(x), kernel, padding=side // 2, groups=x.shape[3]))

    inputs = [random(*shape, grad=True) for shape in ((2, height, width, 3), (side, 3), (side, 3))]
    check_equal(strip_dwconv, outer_product, inputs)
    grad = torch.randn_like(inputs[0])
    expected = gradients(strip_dwconv(*inputs), inputs, (grad,))
    with torch.no_grad():
        found = strip_dwconv_backward(grad, *inputs, True, True)
        nothing = strip_dwconv_backward(grad, *inputs, False, False)
    torch.testing.assert_close(list(found), expected, **TOLERANCE)
    assert all(g.shape == (0,) for g in nothing)


def upsampled(z, kernel, height, width):
    """Nearest upsampling times the tiled kernel; pixels without a token stay zero."""
    patch, (rows, columns) = kernel.shape[0], z.shape[1:3]
    copies = repeat(z, "b h w c -> b (h p) (w q) c", p=patch, q=patch)
    whole = copies * repeat(kernel, "p q c -> (h p) (w q) c", h=rows, w=columns)
    right, bottom = max(width - columns * patch, 0), max(height - rows * patch, 0)
    return F.pad(whole[:, :height, :width], (0, 0, 0, right, 0, bottom))


@every_size
@pytest.mark.parametrize("patch", [1, 2, 4, 6])
def test_propagation_equals_weighted_nearest_upsampling(height, width, patch):
    torch.manual_seed(0)
    grids = {(-(-height // patch), -(-width // patch)), (height // patch, width // patch)}
    for rows, columns in grids:
        if rows and columns:
            check_equal(
                lambda z, kernel: propagate(z, kernel, height, width),
                lambda z, kernel: upsampled(z, kernel, height, width),
                (random(2, rows, columns, 3, grad=True), random(patch, patch, 3, grad=True)),
            )


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 5), (6, 4), (7, 9)])
@pytest.mark.parametrize(("pool_mode", "patch"), [("ceil", 2), ("ceil", 4), ("floor", 2)])
def test_pooling_undoes_propagation_with_ones(height, width, pool_mode, patch):
    sizes = (-(-n // patch) if pool_mode == "ceil" else n // patch for n in (height, width))
    z, eye = random(2, *sizes, 3), torch.eye(3, dtype=torch.float64)
    spread = propagate(z, torch.ones(patch, patch, 3, dtype=torch.float64), height, width)
    for kind in ("avg", "max"):
        pooled, *_ = patch_embed(spread, eye, patch, kind, pool_mode)
        torch.testing.assert_close(pooled, z, **TOLERANCE)


@every_size
def test_joined_maps_equal_their_parts_side_by_side(height, width):
    torch.manual_seed(0)
    plain, z = random(2, height, width, 2, grad=True), random(2, -(-height // 2), -(-width // 2), 3)
    inputs = plain, z.requires_grad_(), random(2, 2, 3, grad=True)

    def ours(plain, z, kernel):
        return propagate_cat([plain, z], [kernel], [False, True], height, width)

    check_equal(ours, lambda x, z, k: torch.cat([x, upsampled(z, k, height, width)], dim=3), inputs)
    y = ours(*inputs)
    grad = torch.randn_like(y)
    expected = gradients(y, inputs, (grad,))
    call = grad, inputs[:2], inputs[2:], [False, True], height, width
    with torch.no_grad():
        found = propagate_cat_backward(*call, [True, True], [True])
        nothing = propagate_cat_backward(*call, [False, False], [False])
    torch.testing.assert_close([*found[0], *found[1]], expected, **TOLERANCE)
    assert all(g.shape == (0,) for gradients in nothing for g in gradients)


def joined_sample(gate: bool):
    """Tokens of 2 x 2 patches, a channel slice of a full map, tokens of 4 x 4 patches."""
    torch.manual_seed(0)
    height, width = 7, 9
    maps = [
        random(2, 4, 5, 2, grad=True),
        random(2, height, width, 6)[..., 1:4].detach().requires_grad_(),
        random(2, 2, 3, 2, grad=True),
    ]
    kernels = [random(2, 2, 2, grad=True), None, random(4, 4, 2, grad=True)]
    weight = random(5, 7, grad=True)
    gates = (
        [random(2, height, width, 3, grad=True), random(5, 3, grad=True)] if gate else [None] * 2
    )
    return maps, kernels, weight, height, width, *gates


@pytest.mark.parametrize("gate", [False, True])
def test_propagating_convolution_equals_concatenation_and_a_convolution(gate):
    maps, kernels, weight, height, width, gate_x, gate_weight = joined_sample(gate)

    def ours(first, slice_, last, k2, k4, weight, *gates):
        gates = gates or (None, None)
        parts, spread = [first, slice_, last], [k2, None, k4]
        return propagate_conv(parts, spread, weight, height, width, *gates)

    def separately(first, slice_, last, k2, k4, weight, *gates):
        parts = [upsampled(first, k2, height, width), slice_, upsampled(last, k4, height, width)]
        y = F.conv2d(nchw(torch.cat(parts, dim=-1)), weight[:, :, None, None])
        if gates:
            y = F.conv2d(nchw(gates[0]), gates[1][:, :, None, None]) * torch.sigmoid(y)
        return nhwc(y)

    gates = (gate_x, gate_weight) if gate else ()
    check_equal(ours, separately, (*maps, kernels[0], kernels[2], weight, *gates))


@pytest.mark.parametrize("gate", [False, True])
def test_propagating_convolution_backward_formulas_equal_autograd(gate):
    arguments = joined_sample(gate)
    maps, kernels, weight, _, _, *gates = arguments
    given = [t for t in (*maps, *kernels, weight, *gates) if t is not None]
    y = propagate_conv(*arguments)
    grad = torch.randn_like(y)
    expected = gradients(y, given, (grad,))
    every, no = [True] * 3, [False] * 3
    with torch.no_grad():
        grad_maps, grad_kernels, *rest = propagate_conv_backward(
            grad, *arguments, every, every, True, True
        )
        nothing = propagate_conv_backward(grad, *arguments, no, no, False, False)
    found = [g for g in (*grad_maps, *grad_kernels, *rest) if g.numel()]
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert all(g.shape == (0,) for g in (*nothing[0], *nothing[1], *nothing[2:]))


def whitened_input(x, weight, dw_weight, axis="spatial"):
    """weight (x - mean(x)), padded with zeros by hand before the convolution."""
    if axis == "spatial":
        u = (x - x.mean(dim=(1, 2), keepdim=True)) @ weight.T
    else:
        u = x @ (weight - weight.mean(dim=0)).T
    if dw_weight is None:
        return u
    kernel = rearrange(dw_weight, "u v c -> c 1 u v")
    return nhwc(F.conv2d(F.pad(nchw(u), (1, 1, 1, 1)), kernel, groups=weight.shape[0]))


@every_size
@pytest.mark.parametrize("axis", ["spatial", "channel"])
@pytest.mark.parametrize("depthwise", [True, False])
def test_whitening_equals_mixing_the_centred_input(height, width, axis, depthwise):
    torch.manual_seed(0)
    shapes = [(2, height, width, 3), (4, 3), (3, 3, 4)][: 2 + depthwise]
    inputs = [random(*shape, grad=True) for shape in shapes]

    def ours(x, weight, dw_weight=None):
        return whiten_conv(x, weight, dw_weight, axis)

    check_equal(ours, lambda x, w, dw=None: whitened_input(x, w, dw, axis), inputs)
    y = ours(*inputs)
    grad = torch.randn_like(y)
    expected = gradients(y, inputs, (grad,))
    arguments = (grad, *inputs, *[None] * (3 - len(inputs)), axis)
    with torch.no_grad():
        found = whiten_conv_backward(*arguments, True, True, True)
        nothing = whiten_conv_backward(*arguments, False, False, False)
    torch.testing.assert_close([g for g in found if g.numel()], expected, **TOLERANCE)
    assert all(g.shape == (0,) for g in nothing)


@every_size
def test_centred_convolution_is_whitening_without_its_product(height, width):
    torch.manual_seed(0)
    x, weight = random(2, height, width, 3, grad=True), random(3, 3, 3, grad=True)
    eye = torch.eye(3, dtype=torch.float64)
    check_equal(centred_dwconv_out, lambda x, w: whitened_input(x, eye, w), (x, weight))
    y, mean = centred_dwconv(x, weight)
    torch.testing.assert_close(mean, x.mean(dim=(1, 2)), **TOLERANCE)
    grad = torch.randn_like(y)
    expected = gradients(y, (x, weight), (grad,))
    with torch.no_grad():
        found = centred_dwconv_backward(grad, x, weight, mean, True, True)
        nothing = centred_dwconv_backward(grad, x, weight, mean, False, False)
    torch.testing.assert_close(list(found), expected, **TOLERANCE)
    assert all(g.shape == (0,) for g in nothing)


def test_whitening_removes_what_an_image_has_everywhere():
    x, weight, dw_weight = random(2, 5, 4, 3), random(4, 3), random(3, 3, 4)
    shifted = x + random(2, 1, 1, 3)
    torch.testing.assert_close(
        whiten_conv(shifted, weight, dw_weight), whiten_conv(x, weight, dw_weight), **TOLERANCE
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_outputs_keep_the_dtype_of_the_input(dtype):
    x = torch.randn(1, 5, 3, 4, dtype=dtype)
    weight, strip = torch.randn(4, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype)
    outputs = (
        patch_embed(x, weight, 2, "max")[0],
        strip_dwconv(x, strip, strip),
        propagate_conv([x], [None], weight, 5, 3, x, weight),
        whiten_conv(x, weight, None),
    )
    assert {y.dtype for y in outputs} == {dtype}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: patch_embed(x, random(2, 3), 2, "max"), "weight must be"),
        (lambda x: patch_embed(x, random(2, 4), 17, "max"), r"patch must be in 1\.\.16"),
        (lambda x: patch_embed(x, random(2, 4), 2, "mean"), "kind must be"),
        (lambda x: patch_embed(x, random(2, 4), 2, "max", "round"), "pool_mode must be"),
        (lambda x: patch_embed(x, random(2, 4), 4, "max", "floor"), "use 'ceil'"),
        (lambda x: strip_dwconv(x, random(2, 4), random(2, 4)), "horizontal must be"),
        (lambda x: strip_dwconv(x, random(3, 4), random(5, 4)), "vertical must be"),
        (lambda x: propagate(x, random(2, 2, 3), 9, 5), "kernel must be"),
        (lambda x: propagate(x, random(2, 2, 4), 12, 5), "12 / 2 rows"),
        (lambda x: propagate_conv([x], [], random(2, 4), 5, 3, None, None), "same number"),
        (lambda x: propagate_conv([x], [None], random(2, 4), 5, 4, None, None), r"maps\[0\]"),
        (lambda x: propagate_conv([x], [None], random(2, 5), 5, 3, None, None), "weight must"),
        (lambda x: propagate_conv([x], [None], random(2, 4), 5, 3, x, None), "together"),
        (
            lambda x: propagate_conv([x], [None], random(2, 4), 5, 3, x, random(3, 4)),
            "gate_weight must be",
        ),
        (lambda x: whiten_conv(x, random(2, 4), random(3, 3, 4)), "dw_weight must be"),
        (lambda x: whiten_conv(x, random(2, 4), None, "batch"), "axis must be"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(random(1, 5, 3, 4))
