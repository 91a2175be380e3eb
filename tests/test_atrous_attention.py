"""atrous_attention: the harness's properties, and what is particular to this op."""

from harness import OpSuite

from hybrid_kernels.samples import atrous_attention


class TestAtrousAttention(OpSuite):
    declaration = atrous_attention.DECLARATION
