"""Whole models by the accuracy rule: who agrees, and who does not."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import hybrid_kernels as hk
from hybrid_kernels.agreement import Agreement, compare
from hybrid_kernels.nn import FUSED

IMAGES = torch.randn(1, 3, 40, 36)
SMALL = {"num_classes": 10, "layers": (1, 1, 1, 1)}


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    reference = hk.create_model("accvit_femto", **SMALL)
    return reference, hk.accelerate(copy.deepcopy(reference))


def test_accelerated_model_agrees_in_outputs_and_gradients():
    agreements = compare(*pair(), IMAGES)
    assert [a.name for a in agreements] == [
        "outputs",
        "gradient of the image",
        "gradient of the weights",
    ]
    assert all(a.ok and a.share > 0 for a in agreements)


def test_lower_precision_agrees_under_autocast():
    assert all(a.ok for a in compare(*pair(), IMAGES, torch.bfloat16))


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_an_inaccurate_op_disagrees(factor):
    reference, accelerated = pair()
    for module in accelerated.modules():
        if getattr(module, "ops", None) is FUSED:
            module.ops = replace(FUSED, gated_fuse=lambda *args: factor * FUSED.gated_fuse(*args))
    assert not any(a.ok for a in compare(reference, accelerated, IMAGES))


def test_models_with_several_outputs_are_compared_in_all_of_them():
    class Two(nn.Module):
        def __init__(self, second: float) -> None:
            super().__init__()
            self.layer, self.second = nn.Linear(36, 2), second

        def forward(self, x):
            return self.layer(x), self.second * self.layer(x).square()

    model = Two(1.0)
    other = copy.deepcopy(model)
    assert all(a.ok for a in compare(model, other, IMAGES))
    other.second = 1.01
    assert not compare(model, other, IMAGES)[0].ok


def test_one_image_on_which_they_agree_is_enough():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor, self.weight = 1.0, nn.Parameter(torch.ones(36))

        def forward(self, x):
            return x * self.weight * (self.factor if x.mean() > 0 else 1.0)

    model, other = Scaled(), Scaled()
    other.factor = 1.01
    up, down = torch.ones(1, 3, 40, 36), -torch.ones(1, 3, 40, 36)
    assert all(a.ok for a in compare(model, other, torch.cat([up, down])))
    assert not any(a.ok for a in compare(model, other, torch.cat([up, up]))[:2])


def test_share_is_of_what_is_allowed():
    assert Agreement("a", 1.0, 1.0, 4.0).share == 0.25
    assert Agreement("a", 0.0, 0.0, 0.0).ok
    assert not Agreement("a", 0.0, 1e-9, 0.0).ok
    assert not Agreement("a", 1.0, float("nan"), 4.0).ok
