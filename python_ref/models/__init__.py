"""Backbones, one file per family, and their weights."""

from python_ref.models.registry import create_model, list_models
from python_ref.models.weights import load_weights, save_weights

__all__ = ["create_model", "list_models", "load_weights", "save_weights"]
