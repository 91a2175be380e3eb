"""Convolutional attention against other ways to write the same mathematics, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from reference_checks import TOLERANCE, check_equal, gradients, random

from python_ref.layers import to_nchw as nchw
from python_ref.layers import to_nhwc as nhwc
from python_ref.ops import (
    conv_attention,
    conv_attention_backward,
    conv_attention_fused,
    conv_attention_fused_backward,
)

SIZES = [(1, 1), (2, 2), (3, 5), (6, 4), (7, 9), (1, 6)]
every_size = pytest.mark.parametrize(("height", "width"), SIZES)
# Kernel, stride and padding: EMSNet and VOLO with stride 2, VOLO with stride 1, and beyond.
GEOMETRIES = [(3, 2, 1), (3, 1, 1), (5, 3, 2), (2, 2, 0), (3, 4, 1)]


def attention_sample(height, width, geometry=(3, 2, 1), heads=2, channels=6):
    torch.manual_seed(height * 100 + width)
    kernel, stride, padding = geometry
    grid = [(size + 2 * padding - kernel) // stride + 1 for size in (height, width)]
    v = random(2, height, width, channels, grad=True)
    return v, random(2, *grid, heads, kernel**2, kernel**2, grad=True)


def by_fold(v, logits, scale, kernel=3, stride=2, padding=1):
    """Unfold, attend, fold: Eq. 3.9 and 3.10 with PyTorch's im2col."""
    slots = F.unfold(nchw(v), kernel, padding=padding, stride=stride)
    slots = rearrange(slots, "b (h d s) l -> b l h s d", h=logits.shape[3], s=kernel**2)
    weights = (scale * logits).softmax(dim=-1).flatten(1, 2)
    mixed = rearrange(weights @ slots, "b l h s d -> b (h d s) l")
    return nhwc(F.fold(mixed, v.shape[1:3], kernel, padding=padding, stride=stride))


def covering(position: int, windows: int) -> list[tuple[int, int]]:
    """I(y): windows of stride 2 that hold a pixel, and its slot in each, along one axis."""
    if position % 2 == 0:
        return [(position // 2, 1)]
    last = [(position // 2 + 1, 0)] if position // 2 + 1 < windows else []
    return [(position // 2, 2), *last]


def by_parity_gather(v, weights):
    """Stride 2 pixel by pixel: at most four windows hold one. weights (B, H2, W2, h, p, q)."""
    _, height, width, channels = v.shape
    per_channel = weights.repeat_interleave(channels // weights.shape[3], dim=3)
    y = torch.zeros_like(v)
    for row, column in itertools.product(range(height), range(width)):
        rows, columns = covering(row, weights.shape[1]), covering(column, weights.shape[2])
        for (i, a), (j, b), q in itertools.product(rows, columns, range(9)):
            source = 2 * i - 1 + q // 3, 2 * j - 1 + q % 3
            if 0 <= source[0] < height and 0 <= source[1] < width:
                weight = per_channel[:, i, j, :, 3 * a + b, q]
                y[:, row, column] += weight * v[:, source[0], source[1]]
    return y


@pytest.mark.parametrize(
    ("height", "width", "geometry"),
    [(*size, g) for size in SIZES for g in GEOMETRIES if min(size) + 2 * g[2] >= g[0]],
)
def test_conv_attention_equals_unfold_matmul_fold(height, width, geometry):
    inputs = attention_sample(height, width, geometry)
    check_equal(
        lambda v, s: conv_attention(v, s, 0.7, *geometry),
        lambda v, s: by_fold(v, s, 0.7, *geometry),
        inputs,
    )


@pytest.mark.parametrize("height", range(1, 10))
def test_conv_attention_equals_the_gather_over_parities(height):
    for width in (1, 4, 7):
        v, logits = (t.detach() for t in attention_sample(height, width))
        weights, grad = (0.7 * logits).softmax(dim=-1), torch.randn_like(v)
        torch.testing.assert_close(
            conv_attention(v, logits, 0.7), by_parity_gather(v, weights), **TOLERANCE
        )
        grad_v, _ = conv_attention_backward(grad, v, logits, 0.7, 3, 2, 1, True, False)
        torch.testing.assert_close(grad_v, by_parity_gather(grad, weights.mT), **TOLERANCE)


@every_size
@pytest.mark.parametrize("geometry", GEOMETRIES[:3])
def test_conv_attention_backward_formulas_equal_autograd(height, width, geometry):
    v, logits = attention_sample(height, width, geometry)
    grad = torch.randn_like(v)
    expected = gradients(conv_attention(v, logits, 0.7, *geometry), (v, logits), (grad,))
    with torch.no_grad():
        found = conv_attention_backward(grad, v, logits, 0.7, *geometry, True, True)
    torch.testing.assert_close(list(found), expected, **TOLERANCE)


def test_conv_attention_backward_returns_nothing_for_what_is_not_needed():
    v, logits = attention_sample(3, 5)
    with torch.no_grad():
        no_v, logits_only = conv_attention_backward(v, v, logits, 1.0, 3, 2, 1, False, True)
        v_only, no_logits = conv_attention_backward(v, v, logits, 1.0, 3, 2, 1, True, False)
    assert no_v.shape == no_logits.shape == (0,)
    assert (v_only.shape, logits_only.shape) == (v.shape, logits.shape)


def test_a_single_pixel_sees_itself_through_its_own_slot():
    v, logits = attention_sample(1, 1)
    share = logits.softmax(dim=-1)[:, 0, 0, :, 4, 4].repeat_interleave(3, dim=1)
    torch.testing.assert_close(conv_attention(v, logits, 1.0)[:, 0, 0], share * v[:, 0, 0])


def test_slots_outside_keep_their_share_of_the_softmax():
    v, logits = attention_sample(1, 1)
    _, grad = gradients(conv_attention(v, logits, 1.0), (v, logits), (torch.ones_like(v),))
    rows, columns = grad.abs().sum(dim=(0, 1, 2, 3, 5)), grad.abs().sum(dim=(0, 1, 2, 3, 4))
    assert rows.nonzero().flatten().tolist() == [4]
    assert (columns > 0).all()


def outlook_attention(x, v_weight, logit_weight, heads, stride, scale):
    """VOLO's module, NHWC: logits from the ceil-mode average of each stride x stride cell."""
    height, width = x.shape[1:3]
    values = F.unfold(nchw(x @ v_weight.T), 3, padding=1, stride=stride)
    values = rearrange(values, "b (h d s) l -> b h l s d", h=heads, s=9)
    pooled = nhwc(F.avg_pool2d(nchw(x), stride, stride, ceil_mode=True))
    logits = rearrange(pooled @ logit_weight.T, "b i j (h p q) -> b h (i j) p q", h=heads, p=9)
    mixed = (logits * scale).softmax(dim=-1) @ values
    mixed = rearrange(mixed, "b h l s d -> b (h d s) l")
    return nhwc(F.fold(mixed, (height, width), 3, padding=1, stride=stride))


@every_size
@pytest.mark.parametrize("stride", [1, 2])
def test_outlook_attention_of_volo_goes_through_conv_attention(height, width, stride):
    torch.manual_seed(0)
    heads, channels = 2, 6
    scale = (channels // heads) ** -0.5

    def through_the_op(x, v_weight, logit_weight):
        pooled = nhwc(F.avg_pool2d(nchw(x), stride, stride, ceil_mode=True))
        logits = (pooled @ logit_weight.T).unflatten(-1, (heads, 9, 9))
        return conv_attention(x @ v_weight.T, logits, scale, 3, stride, 1)

    check_equal(
        through_the_op,
        lambda *inputs: outlook_attention(*inputs, heads, stride, scale),
        (
            random(2, height, width, channels, grad=True),
            random(channels, channels, grad=True),
            random(81 * heads, channels, grad=True),
        ),
    )


def fused_sample(height, width, bias=True, heads=2, channels=4):
    torch.manual_seed(height * 100 + width)
    shapes = [
        (2, height, width, channels),
        (3, 3, channels),
        (81 * heads, channels),
        (81 * heads,),
        (channels, channels),
    ]
    inputs = [random(*shape, grad=True) for shape in shapes]
    return inputs if bias else [*inputs[:3], None, inputs[4]]


def projected_after_unfolding(x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale):
    """Eq. 3.10 in the paper's order: the values are projected slot by slot."""
    kernel = rearrange(dw_weight, "u v c -> c 1 u v")
    pooled = nhwc(F.conv2d(nchw(x), kernel, stride=2, padding=1, groups=x.shape[3]))
    logits = F.linear(pooled, logit_weight, logit_bias).unflatten(-1, (heads, 9, 9))
    slots = rearrange(F.unfold(nchw(x), 3, padding=1, stride=2), "b (c s) l -> b l s c", s=9)
    slots = rearrange(slots @ value_weight.T, "b l s (h d) -> b l h s d", h=heads)
    mixed = (scale * logits).softmax(dim=-1).flatten(1, 2) @ slots
    mixed = rearrange(mixed, "b l h s d -> b (h d s) l")
    return nhwc(F.fold(mixed, x.shape[1:3], 3, padding=1, stride=2))


@every_size
def test_fused_conv_attention_equals_projection_after_unfolding(height, width):
    check_equal(
        lambda *inputs: conv_attention_fused(*inputs, 2, 0.7),
        lambda *inputs: projected_after_unfolding(*inputs, 2, 0.7),
        fused_sample(height, width),
    )


@every_size
@pytest.mark.parametrize("bias", [True, False])
def test_fused_conv_attention_backward_formulas_equal_autograd(height, width, bias):
    inputs = fused_sample(height, width, bias)
    given = [t for t in inputs if t is not None]
    grad = torch.randn_like(inputs[0])
    expected = gradients(conv_attention_fused(*inputs, 2, 0.7), given, (grad,))
    with torch.no_grad():
        found = conv_attention_fused_backward(grad, *inputs, 2, 0.7, True, True, True, True)
    assert bias or found[3].shape == (0,)
    torch.testing.assert_close([g for g in found if g.numel()], expected, **TOLERANCE)


@pytest.mark.parametrize("needs", list(itertools.product([True, False], repeat=4)))
def test_fused_conv_attention_backward_computes_what_is_asked(needs):
    inputs = fused_sample(3, 5)
    with torch.no_grad():
        every = conv_attention_fused_backward(inputs[0], *inputs, 2, 0.7, True, True, True, True)
        found = conv_attention_fused_backward(inputs[0], *inputs, 2, 0.7, *needs)
    x, dw, logit, value = needs
    for grad, full, needed in zip(found, every, (x, dw, logit, logit, value), strict=True):
        assert torch.equal(grad, full) if needed else grad.shape == (0,)


def test_an_empty_batch_gives_an_empty_result_and_zero_weight_gradients():
    x, *parameters = fused_sample(5, 3)
    y = conv_attention_fused(x[:0], *parameters, 2, 1.0)
    assert y.shape == (0, 5, 3, 4)
    y.sum().backward()
    assert not any(p.grad.any() for p in parameters)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: conv_attention(x, random(1, 3, 2, 1, 9, 8), 1.0), "logits must be"),
        (lambda x: conv_attention(x, random(1, 3, 2, 3, 9, 9), 1.0), "divide v's 4 channels"),
        (lambda x: conv_attention(x[:, :0], random(1, 0, 2, 1, 9, 9), 1.0), "v must be"),
        (lambda x: conv_attention(x, random(1, 3, 2, 1, 9, 9), 1.0, 3, 0, 1), "stride=0"),
        (lambda x: conv_attention(x, random(1, 1, 1, 1, 9, 9), 1.0, 9, 1, 0), "no 9 x 9 window"),
        (
            lambda x: conv_attention_fused(
                x, random(3, 3, 4), random(80, 4), None, random(4, 4), 1, 1.0
            ),
            r"logit_weight must be \(81, 4\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(random(1, 5, 3, 4))
