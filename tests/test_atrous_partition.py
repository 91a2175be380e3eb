"""atrous_partition and atrous_merge: the harness's properties, and what is particular to them."""

import pytest
import torch
from harness import DEVICE, OpSuite

from hybrid_kernels import atrous_merge, atrous_partition
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import atrous_merge as merge_samples
from hybrid_kernels.samples import atrous_partition as partition_samples


class TestAtrousPartition(OpSuite):
    declaration = partition_samples.DECLARATION


class TestAtrousMerge(OpSuite):
    declaration = merge_samples.DECLARATION


@pytest.mark.parametrize("sample", partition_samples.SAMPLES, ids=lambda sample: sample.name)
def test_merge_inverts_partition(sample):
    x, window, dilation, fill = sample.build(Maker(torch.float32, DEVICE))
    windows = atrous_partition(x, window, dilation, fill)
    assert torch.equal(atrous_merge(windows, *x.shape[1:3], window, dilation), x)


def test_each_pixel_lies_in_one_slot_and_the_others_hold_the_fill():
    x = torch.arange(1.0, 9 * 13 + 1, device=DEVICE).reshape(1, 9, 13, 1)
    slots = atrous_partition(x, 2, 3, fill=-1.0).flatten()
    assert torch.equal(slots[slots != -1].sort().values, x.flatten())
    assert (slots == -1).sum() == slots.numel() - x.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("fill", [float("inf"), float("-inf"), 1e-3, 6e4])
def test_fill_is_rounded_as_torch_rounds(dtype, fill):
    windows = atrous_partition(torch.zeros(1, 1, 1, 1, dtype=dtype, device=DEVICE), 2, 1, fill)
    assert torch.equal(windows[0, 0, 1:, 0].cpu(), torch.full((3,), fill, dtype=dtype))


@pytest.mark.parametrize("device", [DEVICE, "meta"])
def test_fill_that_the_dtype_cannot_hold_is_refused(device):
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float16, device=device)
    with pytest.raises((ValueError, RuntimeError), match=r"fill = 70000.* too large for .*float16"):
        atrous_partition(x, 2, 1, 7e4)


def test_bits_survive_unchanged():
    x = torch.full((1, 7, 7, 64), float("nan"), device=DEVICE)
    x.view(torch.int32).bitwise_or_(0x2AAAA)  # a payload that arithmetic would lose or quieten
    windows = atrous_partition(x, 7, 1)
    assert torch.equal(windows.view(torch.int32).flatten(), x.view(torch.int32).flatten())
