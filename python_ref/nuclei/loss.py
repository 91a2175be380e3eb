"""Loss of the two branches, HoVer-Net Eq. 2 to 6."""

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-3  # in the dice loss


def hover_loss(
    logits: Tensor, distances: Tensor, foreground: Tensor, true_distances: Tensor
) -> Tensor:
    """Cross-entropy and dice loss of the foreground; MSE of the distances and their gradients.

    Args:
        logits: (B, 2, H, W), background and nucleus.
        distances: predicted (B, 2, H, W), horizontal and vertical.
        foreground: (B, H, W) of integers, 0 or 1.
        true_distances: (B, 2, H, W).

    Returns:
        Their sum, a scalar.
    """
    return (
        F.cross_entropy(logits, foreground)
        + dice_loss(logits, foreground)
        + F.mse_loss(distances, true_distances)
        + gradient_loss(distances, true_distances, foreground)
    )


def dice_loss(logits: Tensor, foreground: Tensor) -> Tensor:
    """Sum over classes of 1 - (2 sum p t + s) / (sum p + sum t + s), sums over the batch."""
    probabilities = logits.softmax(dim=1)
    truth = torch.stack([foreground == 0, foreground == 1], dim=1).to(logits.dtype)
    overlap = (probabilities * truth).sum(dim=(0, 2, 3))
    total = (probabilities + truth).sum(dim=(0, 2, 3))
    return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).sum()


def gradient_loss(distances: Tensor, true_distances: Tensor, foreground: Tensor) -> Tensor:
    """Mean square of the gradients' difference inside nuclei; 0 if there are none."""
    difference = axis_gradients(distances - true_distances)
    mask = foreground[:, None].expand_as(difference).to(difference.dtype)
    return (mask * difference.square()).sum() / (mask.sum() + 1e-8)


def axis_gradients(distances: Tensor) -> Tensor:
    """x-derivative of the horizontal, y-derivative of the vertical map: (B, 2, H, W) -> the same.

    The kernel is x / (x^2 + y^2) on 5 x 5 positions, and zeros surround the image.
    """
    offset = torch.arange(-2, 3, dtype=distances.dtype, device=distances.device)
    along_x = offset / (offset.square() + offset[:, None].square() + 1e-15)
    return F.conv2d(distances, torch.stack([along_x, along_x.T])[:, None], padding=2, groups=2)
