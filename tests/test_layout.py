"""Counting copies that only change the layout of activations."""

import copy

import torch
from torch import Tensor, nn

import hybrid_kernels as hk
from hybrid_kernels.layout import layout_copies
from python_ref.layers import DropPath

IMAGES = torch.randn(2, 3, 8, 6)


class Apply(nn.Module):
    """A function as a model, with a parameter."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def copies_of(function) -> list:
    return layout_copies(Apply(function), IMAGES)


def test_contiguous_clone_reshape_and_assignment_are_copies():
    channels_last = lambda x: x.permute(0, 2, 3, 1)  # noqa: E731
    for function in (
        lambda x, _: channels_last(x).contiguous(),
        lambda x, _: x.contiguous(memory_format=torch.channels_last),
        lambda x, _: x.clone(),
        lambda x, _: channels_last(x).reshape(2, -1),
        lambda x, _: torch.zeros(2, 3, 6, 8).copy_(x.mT),
    ):
        (found,) = copies_of(function)
        assert found.bytes == 4 * IMAGES.numel()


def test_views_arithmetic_other_dtypes_and_parameters_are_none():
    for function in (
        lambda x, _: x.permute(0, 2, 3, 1).flatten(1, 2) + x.contiguous().flatten(2).mT,
        lambda x, _: torch.cat([x + 1, x.mT.relu().mT], dim=1),
        lambda x, _: x.to(torch.bfloat16),
        lambda x, w: x @ w.t().contiguous().t(),
    ):
        assert copies_of(function) == []


def test_what_follows_from_an_activation_is_one():
    def late(x, weight):
        return ((x @ weight).softmax(dim=-1) * 2).mT.contiguous()

    assert [found.shape for found in copies_of(late)] == [(2, 3, 8, 8)]


def test_copies_that_a_fused_op_makes_of_its_arguments_count():
    def attend(x: Tensor, dense: bool) -> Tensor:
        tokens = x.flatten(2).unsqueeze(2) if dense else x.flatten(2).unsqueeze(1).mT
        return hk.multiscale_attention(tokens, tokens, tokens)

    strided, dense = (
        copies_of(lambda x, _, dense=dense: attend(x, dense)) for dense in (False, True)
    )
    assert len(strided) > 0 and dense == []


def test_copies_are_told_apart_by_layer():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_path = DropPath(0.0)

        def forward(self, x: Tensor) -> Tensor:
            return x.mT.contiguous()

    model = nn.Sequential(Block(), nn.ReLU(), Block())
    assert [found.layer for found in layout_copies(model, IMAGES)] == ["0", "2"]
    assert not any(module._forward_hooks for module in model.modules())


def test_accelerated_attention_copies_less():
    torch.manual_seed(0)
    reference = hk.create_model("accvit_femto", num_classes=10, layers=(1, 1, 1, 1)).eval()
    accelerated = hk.accelerate(copy.deepcopy(reference))
    images = torch.randn(1, 3, 64, 64)
    before, after = (layout_copies(model, images) for model in (reference, accelerated))
    assert len(before) > 40 and len(after) <= 1
