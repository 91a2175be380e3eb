"""``python -m hybrid_kernels``: the command line."""

from .cli import main

main()
