"""Drop-in module for the mixer of MRL."""

import python_ref.layers
from python_ref.ops import OpTable

from .fused import FUSED


class RegionMixer(python_ref.layers.MRLMixer):
    """`python_ref.layers.MRLMixer` on fused ops: same arguments, same state dict.

    x (B, H, W, C), or tokens (B, 1 + H * W, C) of that size -> the same shape. The gradient of x
    is written once: see `hybrid_kernels.region_fork`. See the reference module for the arguments,
    the mathematics and the errors.

    Source: MRL ("Learning to mix with attention and convolutions"), Sec. 2.1, 2.2 and A.2.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(getattr(module, "ops", None), OpTable):
                module.ops = FUSED
