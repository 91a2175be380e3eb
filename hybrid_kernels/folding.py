"""BatchNorm of eval mode, folded into the layers beside it: `accelerate(model, fold=True)`."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from python_ref.layers.mscsa import GroupedPointwise


class FoldedNorm(nn.Identity):
    """In the place of a BatchNorm that a linear layer has taken over. It cannot train."""

    def train(self, mode: bool = True) -> "FoldedNorm":
        if mode:
            raise RuntimeError(
                "the BatchNorms of this model are folded into its weights, so it can only "
                "evaluate; to train, build it again without fold=True"
            )
        return super().train(mode)


@torch.no_grad()
def fold_norms(model: nn.Module) -> list[str]:
    """Fold every BatchNorm that a block declares in `folds`, in place.

    The factor and shift of each channel become part of the weight and bias of a convolution or
    linear layer, computed in float64. The state dict changes: norms lose their entries, layers
    gain biases.

    Returns:
        Names of the norms that are gone.

    Raises:
        ValueError: The model is in training mode, where norms need the statistics of the batch.
    """
    if model.training:
        raise ValueError(
            "fold: the model is in training mode, where BatchNorm depends on the batch; call "
            "model.eval() first"
        )
    gone = []
    for name, block in list(model.named_modules()):
        for fold in getattr(block, "folds", ()):
            norm = getattr(block, fold.norm)
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            scale, shift = _affine(norm)
            if fold.after is not None:
                _fold_output(block.get_submodule(fold.after), scale, shift)
            else:
                _fold_input(block.get_submodule(fold.before), scale, shift)
            setattr(block, fold.norm, FoldedNorm().eval())
            gone.append(f"{name}.{fold.norm}".lstrip("."))
    return gone


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and shift of every channel, float64."""
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def _layers(target: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    """The layers that share the channels of a target among them, in order."""
    yield from target.convs if isinstance(target, GroupedPointwise) else [target]


def _fold_output(target: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """norm(W x + b) = (scale W) x + (scale b + shift)."""
    layers = list(_layers(target))
    widths = [len(layer.weight) for layer in layers]
    for layer, s, t in zip(layers, scale.split(widths), shift.split(widths), strict=True):
        bias = t if layer.bias is None else s * layer.bias.double() + t
        _set(layer, s.view(-1, *[1] * (layer.weight.dim() - 1)) * layer.weight.double(), bias)


def _fold_input(target: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """W norm(x) + b = (W scale) x + (W shift + b); of a layer without padding or groups."""
    layers = list(_layers(target))
    widths = [layer.weight.shape[1] for layer in layers]
    for layer, s, t in zip(layers, scale.split(widths), shift.split(widths), strict=True):
        weight = layer.weight.double()
        matrix = weight.flatten(1)  # 1x1 convolutions are matrices
        bias = matrix @ t if layer.bias is None else matrix @ t + layer.bias.double()
        _set(layer, (matrix * s).view_as(weight), bias)


def _set(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=layer.weight.requires_grad)
