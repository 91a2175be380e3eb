"""multiscale_attention: the harness's properties, and what is particular to this op."""

from harness import OpSuite

from hybrid_kernels.samples import multiscale_attention as samples


class TestMultiscaleAttention(OpSuite):
    declaration = samples.DECLARATION
