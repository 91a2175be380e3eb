"""Initial weights, for `model.apply`. Norms keep PyTorch's ones and zeros."""

import math

from torch import nn


def init_linear(module: nn.Module) -> None:
    """Linear layers: truncated normal with deviation 0.02, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_conv_fan_out(module: nn.Module) -> None:
    """Convolutions: normal with variance 2 / fan-out, zero biases.

    The fan-out is kernel area x output channels / groups, so that a depthwise kernel counts its
    own outputs only.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_transformer(module: nn.Module) -> None:
    """`init_linear` and `init_conv_fan_out`, the convention of PVT and its descendants."""
    init_linear(module)
    init_conv_fan_out(module)
