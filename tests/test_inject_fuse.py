"""inject_fuse: the harness's properties, and what is particular to this op."""

import torch
import torch.nn.functional as F
from harness import DEVICE, OpSuite

from hybrid_kernels import inject_fuse
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import inject_fuse as samples


class TestInjectFuse(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_maps_of_one_size_are_multiplied_and_added():
    local, logit, offset = arguments("same_size")
    expected = local * F.hardsigmoid(logit) + offset
    torch.testing.assert_close(inject_fuse(local, logit, offset), expected)


def test_the_sum_of_a_gradient_is_kept():
    local, logit, offset = arguments("ragged")
    offset.requires_grad_()
    y = inject_fuse(local, logit, offset)
    grad = torch.rand_like(y)
    (found,) = torch.autograd.grad(y, offset, grad)
    torch.testing.assert_close(found.sum(dim=(1, 2)), grad.sum(dim=(1, 2)))


def test_rows_that_nothing_reads_have_no_gradient():
    inputs = [t.requires_grad_() for t in arguments("rows_apart")]
    _, logit, offset = torch.autograd.grad(inject_fuse(*inputs).sum(), inputs)
    rows = {1, 5, 9}  # (i + 1/2) 11 / 3 - 1/2 = 4/3, 5, 26/3 and their neighbours above
    read = rows | {2, 8}
    for grad in (logit, offset):
        assert all(not grad[:, p].any() for p in range(11) if p not in read)
    assert all(offset[:, p].any() for p in read)


def test_the_slope_at_the_corners_is_that_of_torch():
    logit = torch.tensor([-3.0, 3.0, -4.0, 4.0, 0.0], device=DEVICE).view(1, 1, 5, 1)
    logit.requires_grad_()
    ones = torch.ones(1, 1, 5, 1, device=DEVICE)
    found, truth = (
        torch.autograd.grad(y.sum(), logit)[0]
        for y in (inject_fuse(ones, logit, 0 * ones), F.hardsigmoid(logit))
    )
    torch.testing.assert_close(found, truth)


def test_nan_reaches_the_pixels_that_read_it_only():
    local, logit, offset = arguments("twice")
    logit[0, 0, 0, 3] = float("nan")
    y = inject_fuse(local, logit, offset)
    assert y[0, :3, :3, 3].isnan().all()
    assert not y[..., :3].isnan().any()
    assert not y[1].isnan().any()


def test_autocast_takes_the_widest_dtype():
    local, logit, offset = arguments("twice")
    with torch.autocast(DEVICE, torch.bfloat16):
        y = inject_fuse(local, logit.bfloat16(), offset.bfloat16())
    assert y.dtype == torch.float32
