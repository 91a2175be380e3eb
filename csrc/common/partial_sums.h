// Sums of many rows in two stages, so that no bit depends on the number of threads: kernels leave
// partial sums, of pieces of work that the shape alone decides, and these are added in their order.
#pragma once

#include <type_traits>

#include "float16.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class Scalar>
void zero(Scalar* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] = 0;
}

// One row of `count` partial sums, added up over `parts` that lie `stride` apart, in double;
// rounded to T. Sums that are neighbours are added up together, as vectors and lines want it.
template <class T, class Scalar>
void sum_parts(const Scalar* first, int64_t parts, int64_t stride, int64_t count, T* sums) {
  constexpr int64_t kBlock = 16;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t width = count - begin < kBlock ? count - begin : kBlock;
    double block[kBlock] = {};
    for (int64_t i = 0; i < parts; ++i) {
      const Scalar* part = first + i * stride + begin;
      if (width == kBlock)
        for (int64_t c = 0; c < kBlock; ++c) block[c] += part[c];
      else
        for (int64_t c = 0; c < width; ++c) block[c] += part[c];
    }
    for (int64_t c = 0; c < width; ++c) {
      if constexpr (std::is_same_v<T, double>)
        sums[begin + c] = block[c];
      else
        sums[begin + c] = from_float<T>(static_cast<float>(block[c]));
    }
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
