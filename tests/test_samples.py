"""What the samples of an op may cost: `hybrid-kernels check` and the suites run all of them."""

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hybrid_kernels.samples import Cost, Declaration, Maker, declarations

# Numbers that an op takes in over all its samples of a cost. An op within it is proved in less than
# two seconds on two cores, on all instruction sets and in all dtypes.
BUDGET = {
    Cost.SMALL: 100_000,
    Cost.MEDIUM: 500_000,
    Cost.LARGE: 1_000_000,
    Cost.HUGE: 10_000_000,
}


def numbers(declaration: Declaration, cost: Cost) -> int:
    """Elements of all arguments of all samples of this cost; a broadcast one counts each time."""
    make = Maker(torch.float32, "meta")
    samples = [sample.build(make) for sample in declaration.samples if sample.cost == cost]
    return sum(x.numel() for x in pytree.tree_leaves(samples) if isinstance(x, Tensor))


@pytest.mark.parametrize("declaration", declarations().values(), ids=declarations())
@pytest.mark.parametrize("cost", Cost, ids=[cost.name for cost in Cost])
def test_samples_stay_within_their_budget(declaration: Declaration, cost: Cost):
    assert numbers(declaration, cost) <= BUDGET[cost], "take smaller ones, or give them more cost"
