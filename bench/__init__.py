"""Benchmarks: every op against its baselines and against the roofline of the machine it runs on.

hybrid-kernels bench                       everything
python -m bench.bench_atrous_attention     one op, from the root of the checkout
"""
