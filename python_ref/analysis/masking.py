"""Images with patches left out."""

import torch
from torch import Tensor, nn

BASELINE = 0.0  # the mean of the training images, after normalisation


def mask_patches(images: Tensor, keep: Tensor, patch: int = 14) -> Tensor:
    """Replace patches by the baseline.

    Args:
        images: (B, C, H, W), normalised.
        keep: (B, n) bool, for the n = ceil(H / patch) * ceil(W / patch) patches, row by row; the
            last row and column may be cut.
        patch: side in pixels.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: keep does not fit.
    """
    height, width = images.shape[2:]
    rows, columns = -(-height // patch), -(-width // patch)
    if tuple(keep.shape) != (len(images), rows * columns):
        raise ValueError(
            f"keep must be (B, patches) = {(len(images), rows * columns)}, got {tuple(keep.shape)}"
        )
    pixels = keep.unflatten(1, (rows, columns)).unsqueeze(1)
    pixels = pixels.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    return images.where(pixels[:, :, :height, :width], BASELINE)


class RandomPatchMask(nn.Module):
    """Augmentation: while training, every image keeps a random number of random patches.

    The thesis trains the networks whose interactions it compares with it, so that masked images
    are nothing new to them. Use `nn.Sequential(RandomPatchMask(), model)`.

    Args:
        patch: side of the patches in pixels.
        enabled: False passes images through.
    """

    def __init__(self, patch: int = 14, enabled: bool = True) -> None:
        super().__init__()
        self.patch, self.enabled = patch, enabled

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W), normalised -> the same shape."""
        if not (self.training and self.enabled):
            return images
        rows, columns = (-(-size // self.patch) for size in images.shape[2:])
        share = torch.rand(len(images), 1, device=images.device)
        keep = torch.rand(len(images), rows * columns, device=images.device) < share
        return mask_patches(images, keep, self.patch)
