"""patch_embed: the harness's properties, and what is particular to this op."""

import torch
import torch.nn.functional as F
from harness import DEVICE, OpSuite

from hybrid_kernels import patch_embed
from hybrid_kernels.samples import patch_embed as samples


class TestPatchEmbed(OpSuite):
    declaration = samples.DECLARATION


def gradient(x: torch.Tensor, pool) -> torch.Tensor:
    x = x.detach().requires_grad_()
    y = pool(x)
    (grad,) = torch.autograd.grad(y.square().sum() + 3 * y.sum(), x)
    return grad


def test_ties_and_nan_are_decided_as_pytorch_decides_them():
    x = torch.tensor([1.0, 2.0, 2.0, 2.0, 5.0, float("nan"), float("nan"), 7.0], device=DEVICE)
    inf = torch.tensor([float("-inf"), float("-inf"), float("inf"), float("inf")], device=DEVICE)
    x = torch.cat([x, inf, -inf]).view(1, 4, 4, 1)
    one = torch.ones(1, 1, device=DEVICE)

    def ours(x):
        return patch_embed(x, one, 2, "max").nan_to_num(3.0, 4.0, 5.0)

    def theirs(x):
        return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).nan_to_num(3.0, 4.0, 5.0)

    assert torch.equal(ours(x), theirs(x))
    index = torch.ops.hybrid.patch_embed(x, one, 2, "max", "ceil")[1].flatten()
    _, places = F.max_pool2d(x.permute(0, 3, 1, 2), 2, return_indices=True)
    rows, columns = places.flatten() // 4 % 2, places.flatten() % 2
    assert index.tolist() == (rows * 2 + columns).tolist()


def test_a_mean_of_a_cut_patch_counts_the_pixels_that_exist():
    x = torch.ones(1, 3, 5, 2, device=DEVICE)
    y = patch_embed(x, torch.eye(2, device=DEVICE), 2, "avg")
    assert torch.equal(y, torch.ones(1, 2, 3, 2, device=DEVICE))


def test_floor_leaves_the_border_without_a_gradient():
    x = torch.ones(1, 5, 5, 1, device=DEVICE)
    one = torch.ones(1, 1, device=DEVICE)
    grad = gradient(x, lambda x: patch_embed(x, one, 3, "avg", "floor"))
    assert grad[:, :3, :3].all() and not grad[:, 3:].any() and not grad[:, :, 3:].any()


def test_the_pooled_map_is_kept_for_the_backward_and_not_the_map():
    x = torch.ones(1, 8, 8, 2, device=DEVICE, requires_grad=True)
    y = patch_embed(x, torch.eye(2, device=DEVICE), 4, "max")
    assert max(kept.numel() for kept in y.grad_fn.saved_tensors) == x.numel() // 4**2
