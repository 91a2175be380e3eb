"""A photograph, as a model sees it."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def load_photo(path: Path | None) -> Tensor:
    """(3, H, W) in [0, 1]: the file, or a photograph that comes with scikit-learn.

    Raises:
        OSError: the file cannot be read as a picture.
    """
    if path is None:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image("china.jpg")
    else:
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def middle_square(photo: Tensor, side: int) -> Tensor:
    """The largest square in the middle of a photograph (3, H, W), as (3, side, side)."""
    length = min(photo.shape[1:])
    top, left = ((n - length) // 2 for n in photo.shape[1:])
    middle = photo[None, :, top : top + length, left : left + length]
    small = F.interpolate(middle, (side, side), mode="bicubic", antialias=True)
    return small[0].clamp(0, 1)


def normalised(photo: Tensor) -> Tensor:
    """A batch of one, with zero mean and unit variance per channel."""
    mean = photo.mean(dim=(1, 2), keepdim=True)
    deviation = photo.std(dim=(1, 2), keepdim=True).clamp_min(1e-3)
    return ((photo - mean) / deviation).unsqueeze(0)
