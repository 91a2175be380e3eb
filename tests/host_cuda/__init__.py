"""The CUDA host emulator: kernels in CUDA C++ compiled by g++ and run on the CPU. See README.md."""
