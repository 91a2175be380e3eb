"""MAT's token fusion and bilinear sampling against other ways to write them, in float64."""

import pytest
import torch
import torch.nn.functional as F
from reference_checks import TOLERANCE, check_equal, gradients, random
from torch import Tensor

from python_ref.ops import (
    bilinear_sample,
    bilinear_sample_backward,
    multiscale_attention_out,
    token_fusion,
    token_fusion_backward,
)

SCALE = 0.7
# Images, pixels, abstract tokens, heads, head width.
FUSIONS = [(2, 9, 4, 3, 5), (1, 1, 1, 1, 2), (2, 6, 1, 2, 3), (0, 4, 3, 1, 2), (2, 0, 3, 1, 2)]
# Images, height, width, channels.
MAPS = [(2, 6, 8, 3), (1, 7, 5, 2), (2, 1, 4, 3), (1, 1, 1, 2), (0, 4, 4, 2)]
every_fusion = pytest.mark.parametrize("case", FUSIONS, ids=str)
every_map = pytest.mark.parametrize("case", MAPS, ids=str)


def fusion_sample(case) -> tuple[Tensor, Tensor, Tensor]:
    batch, pixels, tokens, heads, width = case
    torch.manual_seed(pixels)
    q, y = (random(batch, pixels, heads, width, grad=True) for _ in range(2))
    return q, random(batch, tokens, 2, heads, width, grad=True), y


@every_fusion
def test_token_fusion_equals_attention_added_to_y(case):
    check_equal(
        lambda q, kv, y: token_fusion(q, kv, y, SCALE),
        lambda q, kv, y: y + multiscale_attention_out(q, [kv[:, :, 0]], [kv[:, :, 1]], SCALE),
        fusion_sample(case),
    )


@every_fusion
def test_token_fusion_equals_the_framework(case):
    def framework(q, kv, y):
        heads = (t.transpose(1, 2) for t in (q, kv[:, :, 0], kv[:, :, 1]))
        return y + F.scaled_dot_product_attention(*heads, scale=SCALE).transpose(1, 2)

    check_equal(lambda q, kv, y: token_fusion(q, kv, y, SCALE), framework, fusion_sample(case))


@every_fusion
def test_token_fusion_backward_formulas_equal_autograd(case):
    q, kv, y = fusion_sample(case)
    z = token_fusion(q, kv, y, SCALE)
    grad = torch.randn_like(z)
    with torch.no_grad():
        found = token_fusion_backward(grad, q, kv, SCALE, True, True)
        nothing = token_fusion_backward(grad, q, kv, SCALE, False, False)
    torch.testing.assert_close([*found, grad], gradients(z, (q, kv, y), [grad]), **TOLERANCE)
    assert [g.shape for g in nothing] == [(0,), (0,)]


def test_one_token_adds_its_value_to_every_pixel():
    q, kv, y = fusion_sample(FUSIONS[2])
    torch.testing.assert_close(token_fusion(q, kv, y, SCALE), y + kv[:, :, 1], **TOLERANCE)


def sampling_sample(case, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """Offsets so wide that some points leave the map on every side."""
    batch, height, width, channels = case
    torch.manual_seed(height * 10 + width)
    x = random(batch, height, width, channels, grad=True)
    offset = spread * random(batch, -(-height // 2), -(-width // 2), 2)
    return x, offset.requires_grad_()


def sample_by_grid(x: Tensor, offset: Tensor) -> Tensor:
    """The same points as a normalised grid."""
    height, width = x.shape[1:3]
    rows, columns = (torch.arange(n, dtype=x.dtype) for n in offset.shape[1:3])
    px = 2 * columns + 0.5 + offset[..., 0]
    py = 2 * rows[:, None] + 0.5 + offset[..., 1]
    grid = torch.stack([(px + 0.5) * 2 / width - 1, (py + 0.5) * 2 / height - 1], dim=-1)
    out = F.grid_sample(x.permute(0, 3, 1, 2), grid, align_corners=False, padding_mode="border")
    return out.permute(0, 2, 3, 1)


@pytest.mark.parametrize("case", MAPS[:4], ids=str)
def test_bilinear_sample_equals_grid_sample(case):
    check_equal(bilinear_sample, sample_by_grid, sampling_sample(case))


def test_points_without_offset_read_the_mean_of_two_by_two_pixels():
    x, _ = sampling_sample(MAPS[0])
    pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(bilinear_sample(x, torch.zeros(2, 3, 4, 2)), pooled, **TOLERANCE)


def test_the_first_offset_moves_along_columns():
    x = torch.arange(16.0).reshape(1, 4, 4, 1)
    right = torch.tensor([0.5, -0.5]).expand(1, 2, 2, 2)  # one column right, one row up
    expected = torch.tensor([[1.0, 3.0], [9.0, 11.0]]).reshape(1, 2, 2, 1)
    torch.testing.assert_close(bilinear_sample(x, right), expected)


@every_map
def test_bilinear_sample_backward_formulas_equal_autograd(case):
    x, offset = sampling_sample(case)
    out = bilinear_sample(x, offset)
    grad = torch.randn_like(out)
    with torch.no_grad():
        found = bilinear_sample_backward(grad, x, offset, True, True)
        nothing = bilinear_sample_backward(grad, x, offset, False, False)
    torch.testing.assert_close(list(found), gradients(out, (x, offset), [grad]), **TOLERANCE)
    assert [g.shape for g in nothing] == [(0,), (0,)]


def test_a_clamped_coordinate_gets_no_gradient():
    x, _ = sampling_sample((1, 3, 4, 2))
    offset = torch.zeros(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(bilinear_sample(x, offset).square().sum(), offset)
    assert not grad[:, 1, :, 1].any()  # row 2.5 of a map that ends at 2
    assert grad[:, 0].all()
    assert grad[:, 1, :, 0].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_points_are_found_in_float32_whatever_the_dtype(dtype):
    x = torch.zeros(1, 2, 402, 1, dtype=dtype)
    x[0, :, 401] = 256.0
    offset = torch.zeros(1, 1, 201, 2, dtype=torch.float32)
    offset[0, 0, 200, 0] = 0.0625  # column 400.5625
    assert bilinear_sample(x, offset)[0, 0, 200, 0] == 256 * 0.5625


X, Q = torch.zeros(1, 4, 5, 2), torch.zeros(2, 3, 2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bilinear_sample(X[0], X), "x must be"),
        (lambda: bilinear_sample(X[:, :0], X), "at least one pixel"),
        (lambda: bilinear_sample(X, X), r"offset must be .*\(1, 2, 3, 2\)"),
        (lambda: token_fusion(Q[0], Q, Q, 1.0), "q must be"),
        (lambda: token_fusion(Q, Q, Q, 1.0), r"kv must be .*\(2, M, 2, 2, 4\)"),
        (lambda: token_fusion(Q, Q.new_zeros(2, 0, 2, 2, 4), Q, 1.0), "M >= 1"),
        (lambda: token_fusion(Q, Q.new_zeros(2, 1, 2, 2, 4), Q[:1], 1.0), "y must be"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
