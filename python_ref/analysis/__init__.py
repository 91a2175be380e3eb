"""Ways to look into a trained model; `python -m python_ref.analysis --help` draws pictures.

Attention maps, Grad-CAM, Fourier analysis and interaction strength, for every family.
"""

from python_ref.analysis.attention import AttentionMap, attention_maps
from python_ref.analysis.fourier import branch_maps, log_spectrum, relative_log_amplitude
from python_ref.analysis.grad_cam import grad_cam
from python_ref.analysis.interaction import (
    interactions,
    log_odds,
    near_pairs,
    orders,
    strengths,
    value_of_patches,
)
from python_ref.analysis.masking import RandomPatchMask, mask_patches
from python_ref.analysis.recording import Call, layer_maps, layers, recorded_calls

__all__ = [
    "AttentionMap",
    "Call",
    "RandomPatchMask",
    "attention_maps",
    "branch_maps",
    "grad_cam",
    "interactions",
    "layer_maps",
    "layers",
    "log_odds",
    "log_spectrum",
    "mask_patches",
    "near_pairs",
    "orders",
    "recorded_calls",
    "relative_log_amplitude",
    "strengths",
    "value_of_patches",
]
