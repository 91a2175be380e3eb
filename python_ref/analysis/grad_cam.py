"""Grad-CAM: which part of an image speaks for a class (thesis Fig. 3.11)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.analysis.recording import as_map, run_layers
from python_ref.models.backbone import Backbone


def grad_cam(model: Backbone, images: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Map of the last stage's contribution to one logit of every image.

    With the last stage's output A and w_c = the mean over pixels of d logit / d A_c:
    ReLU(sum_c w_c A_c), stretched to [0, 1] and bilinearly to the image's size. Where a classifier
    does not read that map but a token or a fusion, A is the last layer's map that has an influence.

    Args:
        model: a backbone with a classifier, in eval mode.
        images: (B, C, H, W).
        classes: one index per image; the largest logit's unless given.

    Returns:
        (B, H, W) in [0, 1]; zero everywhere if nothing speaks for the class.

    Raises:
        ValueError: the model has no classifier, or classes are not one index per image.
    """
    if model.head is None:
        raise ValueError("Grad-CAM needs a classifier; build the model with num_classes > 0")
    with torch.enable_grad():
        logits, maps = _candidates(model, images)
        score = logits.gather(1, _chosen(logits, classes)).sum()
        grads = torch.autograd.grad(score, maps, allow_unused=True, materialize_grads=True)
    pairs = [
        (as_map(a.detach(), images.shape[2:]), as_map(g, images.shape[2:]))
        for a, g in zip(maps, grads, strict=True)
    ]
    last, grad = next((pair for pair in reversed(pairs) if pair[1].any()), pairs[-1])
    weights = grad.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * last).sum(dim=1, keepdim=True))
    low, high = heat.amin(dim=(2, 3), keepdim=True), heat.amax(dim=(2, 3), keepdim=True)
    heat = (heat - low) / (high - low).where(high > low, 1)
    return F.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False).squeeze(1)


def _candidates(model: Backbone, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the maps that may be A, the best one last."""
    if type(model).forward is Backbone.forward:  # the classifier reads stage maps
        maps = model.forward_features(images)
        return model.forward_head(maps), [maps[-1]]
    logits, outputs = run_layers(model, images)
    return logits, [out for out in outputs.values() if as_map(out, images.shape[2:]) is not None]


def _chosen(logits: Tensor, classes: Sequence[int] | None) -> Tensor:
    """Classes (B, 1) whose logits are explained."""
    images, number = logits.shape
    if classes is None:
        return logits.argmax(dim=1, keepdim=True)
    if len(classes) != images or any(not 0 <= label < number for label in classes):
        raise ValueError(
            f"classes must be one index below {number} for each of {images} images, got {classes}"
        )
    return torch.tensor(classes, device=logits.device)[:, None]
