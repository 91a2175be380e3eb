"""Hybrid vision backbones and their operators in plain PyTorch: the papers, readable and exact."""
