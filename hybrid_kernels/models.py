"""Backbones by name, and the switch between reference and fused ops inside a model."""

import os
import warnings

from torch import nn

from python_ref import models as reference
from python_ref.models import list_models, load_weights, save_weights
from python_ref.models.backbone import Backbone
from python_ref.ops import REFERENCE, OpTable

from . import backends
from .folding import fold_norms
from .nn import FUSED

__all__ = [
    "accelerate",
    "accelerated_ops",
    "create_model",
    "list_models",
    "load_weights",
    "save_weights",
]


def create_model(
    name: str,
    *,
    backend: str = "reference",
    checkpoint: str | os.PathLike | None = None,
    **options: object,
) -> nn.Module:
    """Build a backbone, with the reference ops or accelerated.

    Args:
        name: One of ``list_models()``.
        backend: ``"reference"``, or what ``accelerate`` takes.
        checkpoint: File with a state dict, ``.safetensors`` or written by ``torch.save``; random
            weights if ``None``.
        **options: ``num_classes``, ``in_chans``, ``features_only``, ``out_indices``, ``drop_path``
            and the options of the family, as in ``python_ref.models.create_model``.

    Returns:
        A module that maps images ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``, or, with
        ``features_only``, to the list of stage outputs ``(B, C_i, H_i, W_i)``.

    Raises:
        ValueError: The name, an option or the backend is unknown, or the checkpoint does not fit.
        RuntimeError: The backend cannot be used here.
    """
    model = reference.create_model(name, **options)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model if backend == "reference" else accelerate(model, backend)


def accelerate(model: nn.Module, backend: str = "auto", *, fold: bool = False) -> nn.Module:
    """Put the fused ops into a model of ``python_ref``, in place.

    Parameters, buffers and their names stay as they are; only the table of operators that each
    mixer holds in its attribute ``ops`` is exchanged. ``accelerated_ops`` tells what was.

    Args:
        model: Any module that contains blocks of ``python_ref.layers``.
        backend: ``"auto"`` uses the fused ops on whatever backend is set; ``"reference"`` puts the
            reference ops back; ``"cpu"``, ``"cuda"`` or ``"triton"`` also calls
            ``hybrid_kernels.set_backend``, which holds for the whole process.
        fold: Also fold the BatchNorms of a model in eval mode into the weights beside them, for
            good: its state dict changes, and it refuses to train.

    Returns:
        The same model.

    Raises:
        ValueError: The model is none of ``python_ref`` and has no block that can be accelerated,
            the backend is unknown, or ``fold`` meets a model in training mode.
        RuntimeError: The backend cannot be used on this machine.
    """
    mixers = list(_mixers(model).values())
    if not mixers and not isinstance(model, Backbone):
        raise ValueError(
            f"model = {type(model).__name__} holds no block of python_ref.layers whose ops could "
            "be exchanged; build it with hybrid_kernels.create_model, or use the modules of "
            "hybrid_kernels.nn in your own"
        )
    if backend not in ("auto", "reference"):
        backends.set_backend(backend)
    folded = fold_norms(model) if fold else []
    for mixer in mixers:
        mixer.ops = REFERENCE if backend == "reference" else FUSED
    if backend != "reference" and not accelerated_ops(model) and not folded:
        ops = ", ".join(sorted({op for mixer in mixers for op in mixer.used_ops}))
        reason = f"none of its ops has a kernel yet ({ops})" if ops else "it calls none of the ops"
        warnings.warn(
            f"{type(model).__name__} runs as before: {reason}; "
            "`hybrid-kernels info` lists those that have a kernel",
            stacklevel=2,
        )
    return model


def accelerated_ops(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of every block that calls an op other than the reference's, with those ops."""
    found = {}
    for name, mixer in _mixers(model).items():
        swapped = [op for op in mixer.used_ops if getattr(mixer.ops, op) != getattr(REFERENCE, op)]
        if swapped:
            found[name] = tuple(swapped)
    return found


def _mixers(model: nn.Module) -> dict[str, nn.Module]:
    modules = model.named_modules()
    return {name: m for name, m in modules if isinstance(getattr(m, "ops", None), OpTable)}
