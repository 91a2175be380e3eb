"""pool_cat: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite

from hybrid_kernels import pool_cat
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import pool_cat as samples


class TestPoolCat(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_a_map_of_the_grid_s_size_is_copied():
    xs, *size = arguments("copy")
    assert torch.equal(pool_cat(xs, *size), xs[0])


def test_a_mean_of_large_equal_values_is_that_value():
    """65504 is the largest float16: sums are wider than the data."""
    x = torch.full((1, 6, 6, 5), 60000.0, dtype=torch.float16, device=DEVICE)
    assert torch.equal(pool_cat([x], 2, 2), x[:, :2, :2])


def test_autocast_takes_the_widest_dtype():
    (x, y), *size = arguments("sliced")
    with torch.autocast(DEVICE, torch.bfloat16):
        out = pool_cat([x.bfloat16(), y], *size)
    assert torch.equal(out, pool_cat([x.bfloat16().float(), y], *size))


def test_gradients_of_overlapping_windows_add_up():
    x = torch.zeros(1, 3, 1, 1, device=DEVICE, requires_grad=True)
    pool_cat([x], 2, 1).sum().backward()  # rows (0, 1) and (1, 2)
    assert x.grad.flatten().tolist() == [0.5, 1.0, 0.5]


def test_no_map_is_refused():
    with pytest.raises(ValueError, match="xs has no map; expected 1 to 8"):
        pool_cat([], 2, 2)
