// Plain C++ that every file may include: the launchers' parameter structs are built from these.
#pragma once

#include <cstdint>

namespace hybrid {

enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// Attention with more branches, a larger window or a wider head is refused by the argument checks.
constexpr int kMaxBranches = 8;
constexpr int kMaxWindow = 16;
constexpr int kMaxHeadDim = 128;

template <class I>
constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

}  // namespace hybrid
