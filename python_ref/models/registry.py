"""Backbones by name. A family is a module with VARIANTS (name -> settings) and `build`."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from python_ref.models import (
    accvit,
    coat,
    convnext,
    cvt,
    emsnet,
    mat,
    mcga,
    mhvn,
    mscsa,
    p2t,
    partialformer,
    pvt_v2,
    resnet,
    shunted,
    swin,
    topformer,
)
from python_ref.models.backbone import Settings

_FAMILIES = (
    accvit,
    coat,
    convnext,
    cvt,
    emsnet,
    mat,
    mcga,
    mhvn,
    mscsa,
    p2t,
    partialformer,
    pvt_v2,
    resnet,
    shunted,
    swin,
    topformer,
)


def list_models(pattern: str = "*") -> list[str]:
    """Names of all backbones that match a shell pattern, such as "accvit_*", sorted."""
    names = [name for family in _FAMILIES for name in family.VARIANTS]
    return sorted(name for name in names if fnmatchcase(name, pattern))


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    drop_path: float = 0.0,
    **options: object,
) -> nn.Module:
    """Build a backbone with random weights.

    Args:
        name: one of `list_models()`.
        num_classes: width of the classifier; 0 returns pooled features instead of logits.
        in_chans: channels of the input image.
        features_only: return the list of stage outputs instead of logits, without a head.
        out_indices: stages to return with features_only; all unless given.
        drop_path: rate of stochastic depth at the last layer, rising linearly from 0.
        **options: settings of the family that replace those of the variant.

    Returns:
        A module that maps (B, in_chans, H, W) to logits (B, num_classes), to pooled features, or
        to a list of maps (B, C_i, H_i, W_i), whose widths and strides `feature_info` lists.

    Raises:
        ValueError: the name is unknown (the nearest names are suggested), or an option is.
    """
    for family in _FAMILIES:
        if name in family.VARIANTS:
            indices = None if out_indices is None else tuple(out_indices)
            settings = Settings(num_classes, in_chans, features_only, indices, drop_path)
            return family.build(name, settings, **options)
    near = get_close_matches(name, list_models(), n=3, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else "list_models() names all"
    raise ValueError(f"no model is called {name!r}; {hint}")
