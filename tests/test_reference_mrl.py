"""The operators of MRL against pixel loops, convolutions and the printed tables, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from reference_checks import TOLERANCE, check_equal, gradients, random
from torch import Tensor

from python_ref.ops import (
    dwconv_qkv,
    dwconv_qkv_backward,
    lift_pool,
    lift_pool_backward,
    region_mix,
    region_mix_backward,
    region_sample,
    region_sample_backward,
)

# Height, width and region: divisible, ragged in both, one pixel, no sampling, larger than the map.
REGIONS = [(8, 12, 4), (7, 10, 4), (5, 5, 2), (1, 1, 4), (3, 9, 4), (6, 4, 1), (2, 3, 8)]
regions = pytest.mark.parametrize(("height", "width", "region"), REGIONS)
CHANNELS = 3


def region_inputs(height: int, width: int, region: int) -> list[Tensor]:
    torch.manual_seed(100 * height + 10 * width + region)
    x = random(2, height, width, CHANNELS, grad=True)
    return [x, random(region, region, CHANNELS, grad=True), random(CHANNELS, grad=True)]


def sample_by_pixel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every pixel adds itself to the token of its region."""
    region, (batch, height, width, channels) = weight.shape[0], x.shape
    tokens = {}
    for i, j in itertools.product(range(height), range(width)):
        key = (i // region, j // region)
        term = weight[i % region, j % region] * x[:, i, j]
        tokens[key] = tokens.get(key, bias.expand(batch, channels)) + term
    rows, columns = -(-height // region), -(-width // region)
    return torch.stack(
        [torch.stack([tokens[p, q] for q in range(columns)], dim=1) for p in range(rows)], dim=1
    )


@regions
def test_region_sample_equals_a_loop_over_pixels(height, width, region):
    check_equal(region_sample, sample_by_pixel, region_inputs(height, width, region))


@regions
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "dx_init"])
def test_region_sample_backward_formulas_equal_autograd(height, width, region, joined):
    inputs = region_inputs(height, width, region)
    x, weight, _ = inputs
    s = region_sample(*inputs)
    grad = torch.randn_like(s)
    expected = gradients(s, inputs, [grad])
    dx_init = torch.randn_like(x) if joined else None
    with torch.no_grad():
        found = region_sample_backward(grad, x, weight, dx_init, True, True, True)
    if joined:
        expected[0] = expected[0] + dx_init
    torch.testing.assert_close(list(found), expected, **TOLERANCE)


def mix_inputs(height: int, width: int, region: int, side: int) -> list[Tensor]:
    torch.manual_seed(100 * height + 10 * width + region)
    rows, columns = -(-height // region), -(-width // region)
    return [
        random(2, height, width, CHANNELS, grad=True),
        random(2, rows, columns, CHANNELS, grad=True),
        random(side, side, CHANNELS, grad=True),
        random(CHANNELS, grad=True),
    ]


def mix_by_index(region: int):
    """z gathered by index, then the taps of the convolution added one after the other."""

    def mix(x: Tensor, g: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        rows, columns = torch.arange(height) // region, torch.arange(width) // region
        z = x + g[:, rows[:, None], columns[None, :]]
        reach = weight.shape[0] // 2
        padded = F.pad(z, (0, 0, reach, reach, reach, reach))
        return bias + sum(
            weight[u, v] * padded[:, u : u + height, v : v + width]
            for u, v in itertools.product(range(weight.shape[0]), repeat=2)
        )

    return mix


sides = pytest.mark.parametrize("side", [1, 3, 5])


@regions
@sides
def test_region_mix_equals_gather_and_taps(height, width, region, side):
    check_equal(
        lambda x, g, weight, bias: region_mix(x, g, weight, region, bias),
        mix_by_index(region),
        mix_inputs(height, width, region, side),
    )


@regions
@sides
def test_region_mix_backward_formulas_equal_autograd(height, width, region, side):
    inputs = mix_inputs(height, width, region, side)
    x, g, weight, bias = inputs
    y = region_mix(x, g, weight, region, bias)
    grad = torch.randn_like(y)
    with torch.no_grad():
        found = region_mix_backward(grad, x, g, weight, region, True, True, True, True)
    torch.testing.assert_close(list(found), gradients(y, inputs, [grad]), **TOLERANCE)


def test_region_mix_promotes_what_autocast_leaves_in_two_dtypes():
    x, g, weight, bias = (t.detach() for t in mix_inputs(7, 10, 4, 3))
    y = region_mix(x.bfloat16(), g.float(), weight.float(), 4, bias.float())
    exact = region_mix(x.bfloat16().double(), g.float().double(), weight, 4, bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, exact.bfloat16(), atol=1e-5, rtol=2**-7)


def test_backward_returns_nothing_for_what_is_not_needed():
    x, g, weight, _ = (t.detach() for t in mix_inputs(7, 10, 4, 3))
    kernel = random(4, 4, CHANNELS)
    sampled = region_sample_backward(g, x, kernel, None, False, False, False)
    mixed = region_mix_backward(x, x, g, weight, 4, False, False, False, False)
    lifted = lift_pool_backward(x, x, weight, "p4", "max", False, False)
    assert {tuple(grad.shape) for grad in (*sampled, *mixed, *lifted)} == {(0,)}


# Source index of every tap of the turned kernel: rotations 0..3, then the mirrored ones.
TABLES = [
    "012345678",
    "258147036",
    "876543210",
    "630741852",
    "210543876",
    "036147258",
    "678345012",
    "852741630",
]
groups = pytest.mark.parametrize("group", ["p4", "p4m"])


def lift_by_table(x: Tensor, weight: Tensor, group: str) -> Tensor:
    """Nine neighbours times the weights that the tables name: (B, H, W, C, elements)."""
    _, height, width, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    neighbours = [
        padded[:, u : u + height, v : v + width] for u, v in itertools.product(range(3), repeat=2)
    ]
    flat = weight.flatten(0, 1)
    tables = TABLES[: {"p4": 4, "p4m": 8}[group]]
    lifted = [
        sum(n * flat[int(source)] for n, source in zip(neighbours, table, strict=True))
        for table in tables
    ]
    return torch.stack(lifted, dim=-1)


def lift_inputs(height: int, width: int) -> list[Tensor]:
    torch.manual_seed(height * 10 + width)
    return [random(2, height, width, CHANNELS, grad=True), random(3, 3, CHANNELS, grad=True)]


sizes = pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 8), (1, 1), (2, 3)])


@groups
@sizes
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_lift_pool_equals_the_index_tables(height, width, group, reduce):
    def by_table(x, weight):
        lifted = lift_by_table(x, weight, group)
        return lifted.mean(dim=-1) if reduce == "mean" else lifted.max(dim=-1).values

    check_equal(
        lambda x, weight: lift_pool(x, weight, group, reduce), by_table, lift_inputs(height, width)
    )


@groups
@sizes
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_lift_pool_backward_formulas_equal_autograd(height, width, group, reduce):
    inputs = lift_inputs(height, width)
    y = lift_pool(*inputs, group, reduce)
    grad = torch.randn_like(y)
    with torch.no_grad():
        found = lift_pool_backward(grad, *inputs, group, reduce, True, True)
    torch.testing.assert_close(list(found), gradients(y, inputs, [grad]), **TOLERANCE)


@groups
def test_lift_pool_turns_with_its_input(group):
    x, weight = (t.detach() for t in lift_inputs(7, 7))
    y = lift_pool(x, weight, group, "max")
    turned = [lambda t: t.rot90(1, (1, 2)), lambda t: t.rot90(2, (1, 2))]
    if group == "p4m":
        turned += [lambda t: t.flip(1), lambda t: t.flip(2), lambda t: t.transpose(1, 2)]
    for turn in turned:
        torch.testing.assert_close(lift_pool(turn(x), weight, group, "max"), turn(y), **TOLERANCE)


@groups
def test_of_equal_orientations_the_first_receives_the_gradient(group):
    """On a constant map all orientations agree inside; the table of the first is the identity."""
    x = torch.ones(1, 5, 5, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.arange(9.0, dtype=torch.float64).reshape(3, 3, 1).requires_grad_()
    y = lift_pool(x, weight, group, "max")
    grad = torch.zeros_like(y)
    grad[0, 2, 2, 0] = 1
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[1:4, 1:4] = torch.arange(9.0).reshape(3, 3)
    autograd = torch.autograd.grad(y, (x, weight), grad)
    with torch.no_grad():
        formulas = lift_pool_backward(grad, x, weight, group, "max", True, True)
    for grad_x, grad_weight in (autograd, formulas):
        assert torch.equal(grad_x[0, :, :, 0], expected)
        assert torch.equal(grad_weight, torch.ones_like(weight))


@groups
@pytest.mark.parametrize("bad", [(0, 0), (2, 1)])
def test_nan_in_any_orientation_gives_nan(group, bad):
    """All outputs that see the NaN, and no others."""
    x, weight = (t.detach() for t in lift_inputs(6, 6))
    expected = lift_pool(x, weight, group, "max")
    x[:, bad[0], bad[1]] = torch.nan
    y = lift_pool(x, weight, group, "max")
    near = torch.zeros(6, 6, dtype=torch.bool)
    near[max(bad[0] - 1, 0) : bad[0] + 2, max(bad[1] - 1, 0) : bad[1] + 2] = True
    assert y[:, near].isnan().all()
    assert torch.equal(y[:, ~near], expected[:, ~near])


def test_nan_of_a_later_orientation_wins_over_a_number():
    """inf * 0 only meets the kernel's zero once the kernel is turned."""
    x = torch.zeros(1, 3, 3, 1, dtype=torch.float64)
    x[0, 0, 1] = torch.inf
    weight = torch.ones(3, 3, 1, dtype=torch.float64)
    weight[1, 0] = 0  # meets the pixel above the centre after three quarter turns only
    assert lift_pool(x, weight, "p4", "max")[0, 1, 1, 0].isnan()


QKV_CASES = list(itertools.product([(7, 7), (4, 6), (1, 1), (5, 2)], [1, 2], [True, False]))


def qkv_inputs(height: int, width: int, with_query: bool, extras: bool):
    """Kernels without the query's, affines and class token: what the op takes, and what is set."""
    torch.manual_seed(height * 10 + width)
    x = random(2, height, width, CHANNELS, grad=True)
    weights = [random(3, 3, CHANNELS, grad=True) for _ in range(3)]
    weights[0] = weights[0] if with_query else None
    affines = [random(2, CHANNELS, grad=True) if extras else None for _ in range(3)]
    cls = random(2, 1, CHANNELS, grad=True) if extras else None
    return x, weights, affines, cls


def qkv_by_conv2d(x, weights, affines, stride_kv, cls):
    """`conv2d` on NCHW copies, the class token added last."""
    tokens = []
    for weight, affine, stride in zip(weights, affines, (1, stride_kv, stride_kv), strict=True):
        y = x.permute(0, 3, 1, 2)
        if weight is not None:
            kernel = weight.permute(2, 0, 1)[:, None]
            y = F.conv2d(y, kernel, stride=stride, padding=1, groups=CHANNELS)
        if affine is not None:
            y = affine[0][:, None, None] * y + affine[1][:, None, None]
        row = y.flatten(2).transpose(1, 2)
        tokens.append(row if cls is None else torch.cat([cls, row], dim=1))
    return tokens


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "affine_cls"])
@pytest.mark.parametrize(("size", "stride_kv", "with_query"), QKV_CASES)
def test_dwconv_qkv_equals_conv2d_and_its_formulas_autograd(size, stride_kv, with_query, extras):
    x, weights, affines, cls = qkv_inputs(*size, with_query, extras)
    arguments = (x, *weights, *affines, 1, stride_kv, cls)
    outs = dwconv_qkv(*arguments)
    others = qkv_by_conv2d(x, weights, affines, stride_kv, cls)
    torch.testing.assert_close(list(outs), others, **TOLERANCE)
    inputs = [t for t in (x, *weights, *affines, cls) if t is not None]
    grads = [torch.randn_like(out) for out in outs]
    expected = gradients(others, inputs, grads)
    torch.testing.assert_close(gradients(outs, inputs, grads), expected, **TOLERANCE)
    with torch.no_grad():
        grad_x, *parts, grad_cls = dwconv_qkv_backward(tuple(grads), *arguments)
    found = [grad_x, *itertools.chain(*parts), grad_cls]
    torch.testing.assert_close([g for g in found if g.numel()], expected, **TOLERANCE)


@pytest.mark.parametrize("size", [(7, 7), (8, 5), (1, 2)])
def test_stride_two_rounds_the_grid_up(size):
    """7 x 7 regions keep 4 x 4 keys: 16, not the 12.25 that H / 2 suggests."""
    x, weights, affines, cls = qkv_inputs(*size, True, False)
    _, k, _ = dwconv_qkv(x, *weights, *affines, 1, 2, cls)
    assert k.shape[1] == -(-size[0] // 2) * -(-size[1] // 2)


def test_an_empty_batch_gives_empty_outputs():
    x, weight = random(0, 7, 5, CHANNELS), random(3, 3, CHANNELS)
    assert region_sample(x, random(4, 4, CHANNELS), None).shape == (0, 2, 2, CHANNELS)
    assert region_mix(x, random(0, 2, 2, CHANNELS), weight, 4, None).shape == x.shape
    assert lift_pool(x, weight, "p4", "max").shape == x.shape
    assert dwconv_qkv(x, None, weight, weight, *[None] * 3, 1, 2, None)[1].shape == (0, 12, 3)


W = random(3, 3, CHANNELS)
X = random(1, 4, 4, CHANNELS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: region_sample(random(4, 4, 3), W, None), "x must be"),
        (lambda: region_sample(random(1, 0, 4, 3), W, None), "at least one pixel"),
        (lambda: region_sample(X, random(0, 0, 3), None), "r >= 1"),
        (lambda: region_sample(X, random(2, 3, 3), None), "weight must be"),
        (lambda: region_sample(X, W, random(4)), "bias must be"),
        (lambda: region_mix(X, X, W, 0, None), "region must be at least 1"),
        (lambda: region_mix(X, X, W, 2, None), r"g must be \(1, 2, 2, 3\)"),
        (lambda: region_mix(X, X, random(2, 2, 3), 1, None), "k odd"),
        (lambda: region_mix(X, X, W, 1, random(2)), "bias must be"),
        (lambda: lift_pool(X, random(5, 5, 3), "p4", "max"), "weight must be"),
        (lambda: lift_pool(X, W, "p6", "max"), "group must be 'p4' or 'p4m'"),
        (lambda: lift_pool(X, W, "p4", "sum"), "reduce must be"),
        (lambda: dwconv_qkv(X, None, W, W, *[None] * 3, 2, 1, None), "stride_q is 1 without wq"),
        (lambda: dwconv_qkv(X, W, W, W[:2], *[None] * 3, 1, 1, None), "wv must be"),
        (lambda: dwconv_qkv(X, W, W, W, W, None, None, 1, 1, None), "affine_q must be"),
        (lambda: dwconv_qkv(X, W, W, W, *[None] * 3, 1, 1, random(1, 3)), "cls must be"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
