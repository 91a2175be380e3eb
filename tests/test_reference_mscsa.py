"""The operators of MSCSA against other ways to write the same mathematics, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from reference_checks import TOLERANCE, check_equal, gradients, random
from torch import Tensor

from python_ref.ops import (
    downsample_pair,
    downsample_pair_backward,
    dwconv_act,
    dwconv_act_backward,
    grouped_pointwise,
    grouped_pointwise_backward,
    inject_fuse,
    inject_fuse_backward,
    pool_cat,
    pool_cat_backward,
    value_conv,
    value_conv_backward,
)

ACTS = {
    "none": lambda t: t,
    "relu": lambda t: t.clamp(min=0),
    "relu6": lambda t: t.clamp(0, 6),
    "gelu": lambda t: 0.5 * t * (1 + torch.erf(t / 2**0.5)),
    "hardswish": lambda t: t * (t + 3).clamp(0, 6) / 6,
}
SIZES = [(7, 7), (1, 1), (5, 8), (2, 3), (9, 1)]
any_size = pytest.mark.parametrize(("height", "width"), SIZES)


def samples(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Leaves whose values lie on both sides of the corners of the activations."""
    torch.manual_seed(sum(map(sum, shapes)))
    return [(3 * random(*shape)).requires_grad_() for shape in shapes]


def stencil(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Depthwise convolution as one product over unfolded neighbourhoods."""
    side, channels = weight.shape[0], x.shape[-1]
    rows, columns = ((size - 1) // stride + 1 for size in x.shape[1:3])
    columns_of_taps = F.unfold(x.permute(0, 3, 1, 2), side, padding=side // 2, stride=stride)
    taps = columns_of_taps.reshape(x.shape[0], channels, side * side, rows, columns)
    return torch.einsum("bckij,kc->bijc", taps, weight.reshape(side * side, channels))


def check_backward(forward, backward, inputs, needs):
    """The formulas equal autograd; what is not needed is left out, whatever else is."""
    result = forward(*inputs)
    grads = [torch.randn_like(out) for out in (result if isinstance(result, tuple) else [result])]
    expected = gradients(result, inputs, grads)
    for wanted in itertools.product([True, False], repeat=needs):
        with torch.no_grad():
            found = backward(*grads, *inputs, *wanted)
        for name, gradient in found.items():
            index, need = name
            if wanted[need]:
                torch.testing.assert_close(gradient, expected[index], **TOLERANCE)
            else:
                assert gradient.shape == (0,)


@any_size
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_dwconv_act_equals_unfolding(height, width, act, has_bias):
    x, weight, bias = samples((2, height, width, 3), (3, 3, 3), (3,))
    inputs = (x, weight, bias) if has_bias else (x, weight)
    check_equal(
        lambda x, w, b=None: dwconv_act(x, w, b, act),
        lambda x, w, b=0: ACTS[act](stencil(x, w) + b),
        inputs,
    )


@pytest.mark.parametrize("act", ACTS)
def test_dwconv_act_backward_formulas_equal_autograd(act):
    check_backward(
        lambda *inputs: dwconv_act(*inputs, act),
        lambda grad, x, w, b, *needs: {
            (i, i): g for i, g in enumerate(dwconv_act_backward(grad, x, w, b, act, *needs))
        },
        samples((2, 5, 8, 3), (3, 3, 3), (3,)),
        needs=3,
    )


def test_a_residual_inside_the_activation_is_one_at_the_centre_tap():
    x, weight, bias = samples((1, 4, 5, 3), (3, 3, 3), (3,))
    centre = torch.zeros_like(weight)
    centre[1, 1] = 1
    torch.testing.assert_close(
        dwconv_act(x, weight + centre, bias, "gelu"),
        F.gelu(x + dwconv_act(x, weight, bias, "none")),
        **TOLERANCE,
    )


@any_size
@pytest.mark.parametrize("affine", [True, False])
def test_downsample_pair_equals_unfolding_of_the_normed_map(height, width, affine):
    inputs = samples((2, height, width, 3), (3, 3, 3), (5, 5, 3), (3,), (3,))
    check_equal(
        lambda x, w3, w5, *affine: downsample_pair(x, w3, w5, *(affine or (None, None))),
        lambda x, w3, w5, scale=1, shift=0: (
            stencil(scale * x + shift, w3, 2),
            stencil(scale * x + shift, w5, 3),
        ),
        inputs if affine else inputs[:3],
    )


def test_downsampled_sizes_are_those_of_equation_3():
    x, w3, w5 = samples((1, 7, 13, 2), (3, 3, 2), (5, 5, 2))
    x1, x2 = downsample_pair(x, w3, w5, None, None)
    assert (x1.shape[1:3], x2.shape[1:3]) == ((4, 7), (3, 5))


def test_the_shift_of_a_folded_norm_does_not_enter_the_padding():
    """Folding it into the convolution as a constant is right inside the map only."""
    x, w3, w5, shift = samples((1, 7, 7, 2), (3, 3, 2), (5, 5, 2), (2,))
    shifted, _ = downsample_pair(x, w3, w5, torch.ones_like(shift), shift)
    plain, _ = downsample_pair(x, w3, w5, None, None)
    difference = shifted - plain - (w3.sum(dim=(0, 1)) * shift)
    assert difference[:, 1:-1, 1:-1].abs().max() < 1e-12
    assert difference[:, 0].abs().min() > 1e-3


@any_size
@pytest.mark.parametrize("affine", [True, False])
def test_downsample_pair_backward_formulas_equal_autograd(height, width, affine):
    inputs = samples((2, height, width, 3), (3, 3, 3), (5, 5, 3), (3,), (3,))[: 5 if affine else 3]

    def backward(grad1, grad2, x, w3, w5, *rest):
        factors, needs = (rest[:2], rest[2:]) if affine else ((None, None), rest)
        found = downsample_pair_backward(grad1, grad2, x, w3, w5, *factors, *needs)
        assert affine or all(g.shape == (0,) for g in found[3:])
        owners = [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2)]
        return dict(zip(owners[: len(inputs)], found, strict=False))

    check_backward(
        lambda x, w3, w5, *factors: downsample_pair(x, w3, w5, *(factors or (None, None))),
        backward,
        inputs,
        needs=3,
    )


@any_size
@pytest.mark.parametrize("affine", [True, False])
def test_value_conv_equals_unfolding(height, width, affine):
    shape = (2, height, width, 4)
    inputs = samples(shape, shape, (3, 3, 4), (4,), (4,), (4,))[: 6 if affine else 4]

    def other(out, v, weight, bias, *factors):
        z = out + stencil(ACTS["hardswish"](v), weight) + bias
        return ACTS["hardswish"](factors[0] * z + factors[1]) if factors else z

    check_equal(
        lambda out, v, w, b, *factors: value_conv(out, v, w, b, *(factors or (None, None))),
        other,
        inputs,
    )


@any_size
@pytest.mark.parametrize("affine", [True, False])
def test_value_conv_backward_formulas_equal_autograd(height, width, affine):
    shape = (2, height, width, 4)
    inputs = samples(shape, shape, (3, 3, 4), (4,), (4,), (4,))[: 6 if affine else 4]

    def backward(grad, out, v, weight, bias, *rest):
        factors, needs = (rest[:2], rest[2:]) if affine else ((None, None), rest)
        found = value_conv_backward(grad, out, v, weight, bias, *factors, *needs)
        assert affine or all(g.shape == (0,) for g in found[4:])
        owners = [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3)]
        return dict(zip(owners[: len(inputs)], found, strict=False))

    check_backward(
        lambda out, v, w, b, *factors: value_conv(out, v, w, b, *(factors or (None, None))),
        backward,
        inputs,
        needs=4,
    )


GROUPS = [((3, 2), (3, 5), (1, 1), (4, 7)), ((5, 3),)]


def group_samples(widths, height, width):
    shapes = [(b, a) for a, b in widths] + [(b,) for _, b in widths]
    return samples((2, height, width, sum(a for a, _ in widths)), *shapes)


@any_size
@pytest.mark.parametrize("widths", GROUPS)
def test_grouped_pointwise_equals_a_block_diagonal_convolution(height, width, widths):
    number = len(widths)

    def dense(x, *parameters):
        weight = torch.block_diag(*parameters[:number])[:, :, None, None]
        bias = torch.cat(parameters[number:])
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1)

    check_equal(
        lambda x, *parameters: grouped_pointwise(x, parameters[:number], parameters[number:]),
        dense,
        group_samples(widths, height, width),
    )


@pytest.mark.parametrize("widths", GROUPS)
def test_grouped_pointwise_backward_formulas_equal_autograd(widths):
    number = len(widths)

    def backward(grad, x, *rest):
        weights, biases, needs = rest[:number], rest[number : 2 * number], rest[2 * number :]
        grad_x, *others = grouped_pointwise_backward(grad, x, weights, biases, *needs)
        owners = [(1 + i, 1 + i // number) for i in range(2 * number)]
        return {(0, 0): grad_x} | dict(zip(owners, [*others[0], *others[1]], strict=True))

    check_backward(
        lambda x, *parameters: grouped_pointwise(x, parameters[:number], parameters[number:]),
        backward,
        group_samples(widths, 3, 5),
        needs=3,
    )


# Sizes that divide, that overlap, the same size, and a larger grid (CoaT's stage 4).
POOLS = [((8, 12), (4, 4)), ((7, 5), (3, 2)), ((3, 4), (3, 4)), ((2, 3), (5, 7)), ((1, 1), (2, 2))]


def pooled_by_loops(x: Tensor, height: int, width: int) -> Tensor:
    rows, columns = x.shape[1:3]
    cells = [
        x[
            :,
            i * rows // height : -(-(i + 1) * rows // height),
            j * columns // width : -(-(j + 1) * columns // width),
        ].mean(dim=(1, 2))
        for i, j in itertools.product(range(height), range(width))
    ]
    return torch.stack(cells, dim=1).unflatten(1, (height, width))


@pytest.mark.parametrize(("size", "grid"), POOLS)
def test_pool_cat_equals_a_loop_over_windows(size, grid):
    check_equal(
        lambda *xs: pool_cat(xs, *grid),
        lambda *xs: torch.cat([pooled_by_loops(x, *grid) for x in xs], dim=-1),
        samples((2, *size, 3), (2, *grid, 1), (2, 2 * size[0], size[1], 2)),
    )


@pytest.mark.parametrize(("size", "grid"), POOLS)
def test_pool_cat_backward_formula_equals_autograd(size, grid):
    check_backward(
        lambda *xs: pool_cat(xs, *grid),
        lambda grad, first, second, *needs: {
            (i, i): g for i, g in enumerate(pool_cat_backward(grad, (first, second), *grid, needs))
        },
        samples((2, *size, 3), (2, 2 * size[0], size[1], 2)),
        needs=2,
    )


# Upsampling by integer and odd factors, the same size, downsampling, one pixel.
RESIZES = [
    ((2, 3), (8, 12)),
    ((3, 2), (7, 5)),
    ((3, 4), (3, 4)),
    ((5, 7), (2, 3)),
    ((1, 1), (3, 2)),
]


def bilinear_by_corners(coarse: Tensor, height: int, width: int) -> Tensor:
    """Every fine pixel as the weighted sum of the four coarse cells around its centre."""

    def axis(size, fine):
        source = ((torch.arange(fine).double() + 0.5) * size / fine - 0.5).clamp(min=0)
        low = source.floor().long().clamp(max=size - 1)
        return low, (low + 1).clamp(max=size - 1), (source - low).clamp(max=1)

    top, bottom, down = axis(coarse.shape[1], height)
    left, right, across = axis(coarse.shape[2], width)
    down, across = down[:, None, None], across[:, None]
    upper = coarse[:, top][:, :, left] * (1 - across) + coarse[:, top][:, :, right] * across
    lower = coarse[:, bottom][:, :, left] * (1 - across) + coarse[:, bottom][:, :, right] * across
    return upper * (1 - down) + lower * down


@pytest.mark.parametrize(("coarse", "fine"), RESIZES)
def test_inject_fuse_equals_interpolation_by_corners(coarse, fine):
    check_equal(
        inject_fuse,
        lambda local, logit, offset: (
            local * bilinear_by_corners((logit + 3).clamp(0, 6) / 6, *fine)
            + bilinear_by_corners(offset, *fine)
        ),
        samples((2, *fine, 3), (2, *coarse, 3), (2, *coarse, 3)),
    )


@pytest.mark.parametrize(("coarse", "fine"), RESIZES)
def test_inject_fuse_backward_formulas_equal_autograd(coarse, fine):
    check_backward(
        inject_fuse,
        lambda *arguments: {(i, i): g for i, g in enumerate(inject_fuse_backward(*arguments))},
        samples((2, *fine, 3), (2, *coarse, 3), (2, *coarse, 3)),
        needs=3,
    )


def test_derivatives_at_the_corners_are_pytorchs():
    corners = torch.tensor([-3.0, 0.0, 3.0, 6.0], dtype=torch.float64).reshape(1, 1, 4, 1)
    weight = torch.zeros(3, 3, 1, dtype=torch.float64)
    weight[1, 1] = 1
    for act in ACTS:
        x = corners.clone().requires_grad_()
        y = dwconv_act(x, weight, None, act)
        (expected,) = torch.autograd.grad(y.sum(), x)
        found, _, _ = dwconv_act_backward(
            torch.ones_like(x), corners, weight, None, act, True, False, False
        )
        torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backward_accumulates_in_float32(dtype):
    x, weight, bias = (t.detach().to(dtype) for t in samples((2, 5, 4, 3), (3, 3, 3), (3,)))
    grads = dwconv_act_backward(x, x, weight, bias, "relu6", True, True, True)
    assert [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]
    grads = value_conv_backward(x, x, x, weight, bias, bias, bias, True, True, True, True)
    assert [g.dtype for g in grads] == [dtype, dtype, *[torch.float32] * 4]


def test_an_empty_batch_gives_empty_maps_and_zero_gradients():
    x = random(0, 3, 4, 2, grad=True)
    weight3, weight5 = random(3, 3, 2, grad=True), random(5, 5, 2, grad=True)
    bias = random(2, grad=True)
    square = random(2, 2, grad=True)
    outputs = (
        dwconv_act(x, weight3, bias, "relu6"),
        *downsample_pair(x, weight3, weight5, None, None),
        value_conv(x, x, weight3, bias, None, None),
        grouped_pointwise(x, [square], [bias]),
        inject_fuse(x, random(0, 1, 1, 2), random(0, 1, 1, 2)),
        pool_cat([x], 2, 2),
    )
    assert [out.shape[0] for out in outputs] == [0] * len(outputs)
    sum(out.sum() for out in outputs).backward()
    assert not any(p.grad.any() for p in (weight3, weight5, bias, square))


MAP = random(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dwconv_act(MAP, random(3, 3, 5), None, "relu"), r"weight must .*\(3, 3, 4\)"),
        (lambda: dwconv_act(MAP, random(3, 3, 4), random(3), "relu"), r"bias must be \(C,\)"),
        (lambda: dwconv_act(MAP, random(3, 3, 4), None, "swish"), "act must be one of none, relu"),
        (lambda: dwconv_act(MAP[0], random(3, 3, 4), None, "relu"), r"x must be \(B, H, W, C\)"),
        (
            lambda: downsample_pair(MAP, random(3, 3, 4), random(3, 3, 4), None, None),
            r"weight5 must .*\(5, 5, 4\)",
        ),
        (
            lambda: downsample_pair(MAP, random(3, 3, 4), random(5, 5, 4), random(4), None),
            "given together",
        ),
        (
            lambda: value_conv(MAP, MAP[:, :1], random(3, 3, 4), random(4), None, None),
            "out and v must both",
        ),
        (
            lambda: value_conv(MAP, MAP, random(3, 3, 4), random(4), random(4), random(3)),
            r"shift must be \(C,\)",
        ),
        (lambda: grouped_pointwise(MAP, [], []), "weights must be one"),
        (lambda: grouped_pointwise(MAP, [random(2, 3)], [random(2)]), r"x must be .* 3\)"),
        (lambda: grouped_pointwise(MAP, [random(2, 4)], [random(3)]), r"biases must .*\(2,\)"),
        (lambda: pool_cat([], 1, 1), "at least one map"),
        (lambda: pool_cat([MAP, MAP[0]], 1, 1), r"xs\[1\] must be"),
        (lambda: pool_cat([MAP], 0, 1), "height and width"),
        (lambda: inject_fuse(MAP, random(1, 1, 1, 3), random(1, 1, 1, 3)), "logit must be"),
        (lambda: inject_fuse(MAP, random(1, 1, 1, 4), random(1, 1, 2, 4)), "offset must be"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
