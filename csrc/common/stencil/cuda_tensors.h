// What a stencil's <op>.cpp needs for its CUDA kernels.
#pragma once

#include "../launch.h"
#include "tensors.h"

namespace hybrid {

// A map x that they can serve: they count pixels in 32 bits.
inline void check_cuda_map(const char* op, const Tensor& x) {
  check_map(op, "x", x);
  check_cuda_dtype(op, "x", x);
  const int64_t pixels = x.size(0) * x.size(1) * x.size(2);
  check(pixels <= INT32_MAX / 2, op, ": x has ", pixels, " pixels; CUDA takes at most ",
        INT32_MAX / 2, ": split the batch");
}

}  // namespace hybrid
