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
// rounded to T.
template <class T, class Scalar>
void sum_parts(const Scalar* first, int64_t parts, int64_t stride, int64_t count, T* sums) {
  for (int64_t c = 0; c < count; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < parts; ++i) sum += first[i * stride + c];
    if constexpr (std::is_same_v<T, double>)
      sums[c] = sum;
    else
      sums[c] = from_float<T>(static_cast<float>(sum));
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
