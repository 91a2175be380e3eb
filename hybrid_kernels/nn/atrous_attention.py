"""Drop-in module for the atrous attention of ACC-ViT."""

import python_ref.layers

from .fused import FUSED


class AtrousAttention(python_ref.layers.AtrousAttention):
    """`python_ref.layers.AtrousAttention` on fused ops: same arguments, same state dict.

    x (B, H, W, C) -> (B, H, W, C), float32, bfloat16, float16 (float64 on CPU), any map size. See
    the reference module for the arguments, the mathematics and the errors.

    Source: ACC-ViT ("Fusion of regional and sparse attention in Vision Transformers"), Sec. 2.1
    and 2.2.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.ops = FUSED
