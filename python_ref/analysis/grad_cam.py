"""Grad-CAM: which part of an image speaks for a class (thesis Fig. 3.11)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.models.backbone import Backbone


def grad_cam(model: Backbone, images: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Map of the last stage's contribution to one logit of every image.

    With the last stage's output A and w_c = the mean over pixels of d logit / d A_c:
    ReLU(sum_c w_c A_c), stretched to [0, 1] and bilinearly to the image's size.

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
        maps = model.forward_features(images)
        logits = model.forward_head(maps)
        chosen = logits.argmax(dim=1) if classes is None else torch.tensor(classes)
        if (
            tuple(chosen.shape) != (len(images),)
            or not 0 <= chosen.min() <= chosen.max() < (logits.shape[1])
        ):
            raise ValueError(
                f"classes must be one index below {logits.shape[1]} for each of {len(images)} "
                f"images, got {classes}"
            )
        score = logits.gather(1, chosen.to(logits.device)[:, None]).sum()
        (grad,) = torch.autograd.grad(score, maps[-1])
    last = maps[-1].detach()
    weights = grad.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * last).sum(dim=1, keepdim=True))
    low, high = heat.amin(dim=(2, 3), keepdim=True), heat.amax(dim=(2, 3), keepdim=True)
    heat = (heat - low) / (high - low).where(high > low, 1)
    return F.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False).squeeze(1)
