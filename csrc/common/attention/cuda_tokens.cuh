// Where the rows of tokens lie, for kernels whose Work has an image and a head.
#pragma once

#include "cuda_rows.cuh"
#include "tokens.h"

namespace hybrid {
namespace {

// Whether rows of `width` elements can move by 16 bytes.
inline bool is_vector(DType dtype, const void* base, const int64_t* strides, int width) {
  const int64_t element = dtype == DType::f32 ? 4 : 2;
  bool ok = reinterpret_cast<uintptr_t>(base) % 16 == 0 && width * element % 16 == 0;
  for (int i = 0; strides && i < 3; ++i) ok = ok && strides[i] * element % 16 == 0;
  return ok;
}

inline bool is_vector(DType dtype, const AttentionTokens& tokens, int width) {
  return is_vector(dtype, tokens.data, tokens.stride, width);
}

// Rows of one image and head of (B, tokens, h, width).
template <class T>
struct TokenRows {
  T* base;
  int64_t step;

  __device__ __forceinline__ T* operator()(int64_t row) const { return base + row * step; }
};

template <class T, class Work>
__device__ __forceinline__ TokenRows<const T> token_rows(const AttentionTokens& tokens,
                                                         const Work& work) {
  const int64_t* s = tokens.stride;
  return {static_cast<const T*>(tokens.data) + work.image * s[0] + work.head * s[2], s[1]};
}

// Of a contiguous (B, rows, h, width).
template <class T, class Work>
__device__ __forceinline__ TokenRows<T> packed_rows(void* data, int64_t rows, int heads, int width,
                                                    const Work& work) {
  const int64_t step = static_cast<int64_t>(heads) * width;
  return {static_cast<T*>(data) + work.image * rows * step + work.head * width, step};
}

}  // namespace
}  // namespace hybrid
