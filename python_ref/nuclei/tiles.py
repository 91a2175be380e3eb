"""A whole slide region through a network of fixed size, tile by tile."""

import numpy as np
import torch
from torch import Tensor, nn

from python_ref.nuclei.targets import central

WINDOW, CROP = 256, 164  # side of the input, and of what is kept of the output


@torch.no_grad()
def predict_image(
    model: nn.Module, image: Tensor, window: int = WINDOW, crop: int = CROP
) -> tuple[np.ndarray, np.ndarray]:
    """Predict an image of any size from the central parts of overlapping windows.

    Args:
        model: in eval mode; (B, 3, window, window) -> foreground logits and distance maps, each
            (B, 2, window, window).
        image: (3, H, W) in [0, 1]; it is mirrored at its borders.
        window: side of the input of the model.
        crop: side of the central part that is kept; window - crop must be even.

    Returns:
        The probability of the foreground (H, W) and the distances (2, H, W), in float32.
    """
    margin = (window - crop) // 2
    height, width = image.shape[-2:]
    rows, columns = -(-height // crop), -(-width // crop)
    pads = [
        (0, 0),
        (margin, margin + rows * crop - height),
        (margin, margin + columns * crop - width),
    ]
    padded = image.new_tensor(np.pad(image.cpu().numpy(), pads, mode="symmetric"))
    result = np.empty((3, rows * crop, columns * crop), dtype=np.float32)
    for top in range(0, rows * crop, crop):
        for left in range(0, columns * crop, crop):
            tile = padded[None, :, top : top + window, left : left + window]
            logits, distances = (central(x, crop)[0].float().cpu() for x in model(tile))
            result[0, top : top + crop, left : left + crop] = logits.softmax(dim=0)[1]
            result[1:, top : top + crop, left : left + crop] = distances
    result = result[:, :height, :width]
    return result[0], result[1:]
