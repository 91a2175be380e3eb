"""lift_pool: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite
from torch.utils.flop_counter import FlopCounterMode

from hybrid_kernels import dwconv_act, lift_pool
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import lift_pool as samples

TURNS = {
    "p4": [lambda t: t.rot90(1, (1, 2)), lambda t: t.rot90(2, (1, 2))],
    "p4m": [lambda t: t.rot90(1, (1, 2)), lambda t: t.flip(2), lambda t: t.transpose(1, 2)],
}
groups = pytest.mark.parametrize("group", TURNS)


class TestLiftPool(OpSuite):
    declaration = samples.DECLARATION


def inputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    make = Maker(torch.float32, DEVICE)
    return make.data(*shape), make.parameter(3, 3, shape[3])


@groups
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_the_output_turns_with_the_input(group, reduce):
    x, weight = inputs(2, 5, 7, 19)
    y = lift_pool(x, weight, group, reduce)
    for turn in TURNS[group]:
        torch.testing.assert_close(lift_pool(turn(x), weight, group, reduce), turn(y))


@groups
def test_gradients_turn_with_the_input_and_those_of_the_kernel_stay(group):
    x, weight = (t.requires_grad_() for t in inputs(2, 5, 7, 19))
    y = lift_pool(x, weight, group)
    grad = Maker(torch.float32, DEVICE, seed=1).data(*y.shape)
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad)
    for turn in TURNS[group]:
        turned = turn(x.detach()).requires_grad_()
        y = lift_pool(turned, weight, group)
        other_x, other_weight = torch.autograd.grad(y, (turned, weight), turn(grad))
        torch.testing.assert_close(other_x, turn(grad_x))
        torch.testing.assert_close(other_weight, grad_weight, atol=1e-4, rtol=1e-4)


@groups
def test_of_equal_orientations_the_first_receives_the_gradient(group):
    """On a constant map all orientations agree inside; the first leaves the kernel as it is."""
    x = torch.ones(1, 5, 5, 2, device=DEVICE, requires_grad=True)
    weight = torch.arange(18.0, device=DEVICE).reshape(3, 3, 2).requires_grad_()
    y = lift_pool(x, weight, group)
    grad = torch.zeros_like(y)
    grad[0, 2, 2] = 1
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad)
    expected = torch.zeros_like(x)
    expected[0, 1:4, 1:4] = weight.detach()
    assert torch.equal(grad_x, expected)
    assert torch.equal(grad_weight, torch.ones_like(weight))


@groups
@pytest.mark.parametrize("place", [(0, 0), (2, 1)])
def test_nan_reaches_its_neighbours_only(group, place):
    x, weight = inputs(1, 6, 6, 9)
    expected = lift_pool(x, weight, group)
    x[:, place[0], place[1], 4] = torch.nan
    y = lift_pool(x, weight, group)
    near = torch.zeros(1, 6, 6, 9, dtype=torch.bool, device=DEVICE)
    rows, columns = (slice(max(at - 1, 0), at + 2) for at in place)
    near[:, rows, columns, 4] = True
    assert y[near].isnan().all()
    assert torch.equal(y[~near], expected[~near])


def test_nan_of_a_later_orientation_wins_over_a_number():
    """inf * 0 only meets the kernel's zero once the kernel is turned."""
    x, weight = torch.zeros(1, 3, 3, 1, device=DEVICE), torch.ones(3, 3, 1, device=DEVICE)
    x[0, 0, 1] = torch.inf
    weight[1, 0] = 0  # meets the pixel above the centre after three quarter turns only
    assert lift_pool(x, weight)[0, 1, 1, 0].isnan()


@groups
def test_mean_is_the_plain_convolution_with_the_mean_kernel(group):
    x, weight = inputs(2, 5, 4, 9)
    turned = [kernel.rot90(s, (0, 1)) for s in range(4) for kernel in (weight, weight.flip(1))]
    mean = torch.stack(turned).mean(dim=0)
    torch.testing.assert_close(lift_pool(x, weight, group, "mean"), dwconv_act(x, mean))


def test_16_bit_parameters_are_converted_and_get_16_bit_gradients():
    x, weight = inputs(1, 4, 4, 8)
    narrow = weight.bfloat16().requires_grad_()
    y = lift_pool(x.bfloat16(), narrow)
    assert torch.equal(y, lift_pool(x.bfloat16(), narrow.detach().float()))
    (grad,) = torch.autograd.grad(y.float().sum(), narrow)
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("group", "convolutions"), [("p4", 4), ("p4m", 8)])
def test_flops_are_those_of_all_orientations(group, convolutions):
    x, weight = inputs(2, 5, 4, 9)
    with FlopCounterMode(display=False) as counter:
        lift_pool(x, weight, group)
    assert counter.get_total_flops() == convolutions * 2 * 9 * x.numel()
