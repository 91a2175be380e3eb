"""ResNet: published counts, the residual block by hand, and what a user does."""

import torch
from model_checks import (
    RAGGED,
)
from model_suite import ModelSuite

from python_ref.models.resnet import ResidualBlock
from python_ref.published import mscsa_baselines

ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("resnet")]


class TestResNet(ModelSuite):
    whole = "resnet18"
    names = ("resnet18", "resnet50")
    small = {"depths": (1, 1, 2, 1), "hidden": (8, 16, 24, 32), "stem": 16}
    rows = ROWS
    sizes = (RAGGED, (1, 40))
    options = ({"drop_path": 0.5}, {"in_chans": 1}, {"bottleneck": True})
    refused = [({"layers": (1, 1, 1, 1)}, "no option 'layers'; .*depths, bottleneck")]


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
    block = ResidualBlock(16, 8, 32, 2, bottleneck=True, drop_path=0.0)
    assert [layer.conv.stride for layer in block.residual] == [(1, 1), (2, 2), (1, 1)]
    assert block.shortcut.conv.stride == (2, 2)


def test_a_silent_residual_leaves_the_rectified_input():
    """The last norm scales the residual branch; nothing but ReLU follows the sum."""
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, 8, 1, bottleneck=False, drop_path=0.0).eval()
    torch.nn.init.zeros_(block.residual[-1].norm.weight)
    x = torch.randn(2, 8, 5, 3)
    assert torch.equal(block(x), x.relu())
