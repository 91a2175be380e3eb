"""Backbones, one file per family."""

from python_ref.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
