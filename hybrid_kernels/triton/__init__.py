"""Triton kernels: the same operators, for GPUs that the compiled library was not built for."""
