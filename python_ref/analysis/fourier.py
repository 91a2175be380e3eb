"""Fourier analysis of feature maps: which frequencies a layer passes on (thesis Fig. 3.5-3.10).

The method of "How Do Vision Transformers Work?" (Park & Kim, 2022).
"""

import math

import torch
from torch import Tensor

from python_ref.analysis.recording import recorded_calls
from python_ref.models.backbone import Backbone
from python_ref.ops import propagate

_FLOOR = 1e-6


def log_spectrum(maps: Tensor) -> Tensor:
    """log(|FFT| + 1e-6), mean over images and channels, frequency zero in the middle.

    Args:
        maps: (B, C, H, W); if it is not square, its middle is taken.

    Returns:
        (S, S) with S = min(H, W), zero frequency at (S // 2, S // 2).
    """
    side = min(maps.shape[-2:])
    top, left = ((size - side) // 2 for size in maps.shape[-2:])
    square = maps[..., top : top + side, left : left + side]
    wide = torch.promote_types(maps.dtype, torch.float32)
    amplitude = torch.fft.fft2(square.to(wide)).abs()
    centred = (amplitude + _FLOOR).log().roll((side // 2, side // 2), dims=(-2, -1))
    return centred.mean(dim=(0, 1))


def relative_log_amplitude(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Log amplitude along the diagonal, minus that of frequency zero.

    Args:
        maps: (B, C, H, W).

    Returns:
        frequencies (ceil(S / 2),) from 0 to pi, and the amplitudes there. The last amplitude is
        the layer's "delta log amplitude": negative where high frequencies are damped.
    """
    spectrum = log_spectrum(maps)
    diagonal = spectrum.diagonal()[len(spectrum) // 2 :]
    frequencies = torch.linspace(0, math.pi, len(diagonal), dtype=diagonal.dtype)
    return frequencies, diagonal - diagonal[0]


def branch_maps(model: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Full-size maps that EMSNet's branches gather, by block and branch (thesis Fig. 3.10).

    Tokens are propagated to their pixels first. A static branch has the depthwise map and one for
    each patch size, a dynamic one C-MHSA and G-MHSA.

    Args:
        model: an EMSNet.
        images: (B, C, H, W).

    Returns:
        Maps (B, C', H', W') by names such as "stages.0.1.mixer.static, patch 2".

    Raises:
        ValueError: the model gathers nothing with `propagate_conv`.
    """
    with torch.no_grad(), recorded_calls(model, ("propagate_conv",)) as calls:
        model(images)
    maps = {}
    for call in calls:
        size = call.arguments["height"], call.arguments["width"]
        parts = zip(call.arguments["maps"], call.arguments["kernels"], strict=True)
        for z, kernel in parts:
            label = "full size" if kernel is None else f"patch {kernel.shape[0]}"
            full = z if kernel is None else propagate(z, kernel, *size)
            maps[f"{call.module}, {label}"] = full.detach().permute(0, 3, 1, 2)
    if not maps:
        raise ValueError(f"{type(model).__name__} gathers no branches; this needs an EMSNet")
    return maps
