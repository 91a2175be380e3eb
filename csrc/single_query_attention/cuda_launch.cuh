// The launchers of one data type. Each is compiled in a file of its own, which holds nothing but
// its instantiation: single_query_attention_cuda_<direction>_<dtype>.cu.
#pragma once

#include "../common/attention/cuda_tokens.cuh"
#include "single_query_attention.h"

namespace hybrid {

// How the tokens of an image and head are shared out, by shape alone: in runs, one for each warp.
struct Runs {
  int64_t number, tokens;

  explicit Runs(const SingleQueryAttentionParams& p) {
    constexpr int64_t kWanted = 8192;  // fills a GPU
    constexpr int64_t kUnit = 128;     // tokens, beside which partial results are few bytes
    const int64_t units = ceil_div<int64_t>(p.N, kUnit);
    tokens = ceil_div(units * p.B * p.h, kWanted) * kUnit;
    number = ceil_div<int64_t>(p.N, tokens);
  }
};

inline int64_t works(const SingleQueryAttentionParams& p, const Runs& runs) {
  return p.B * runs.number * p.h;
}

// Floats that a run and query leave in the workspace. Forward: the largest score, the sum of
// exponentials, the weighted values. Backward: the gradient of the query.
__host__ __device__ inline int partial_floats(const SingleQueryAttentionParams& p, bool backward) {
  return backward ? p.d : p.dv + 2;
}

// T: float, __nv_bfloat16 or __half. A direction has two launches, with partial results in
// p.workspace between them. mask: (B, N), 1 for excluded tokens; or null.
template <class T>
int single_query_forward(const SingleQueryAttentionParams& p, const uint8_t* mask, void* stream);
template <class T>
int single_query_backward(const SingleQueryAttentionParams& p, const uint8_t* mask, void* stream);

namespace {

// Tiles of 32 tokens; 16 for the widest float32 rows, which would leave no room for other blocks.
template <class T, int E>
struct Tile {
  using G = Mma<T, E, 32>;
};
template <int E>
struct Tile<float, E> {
  using G = Fma<E, E == 128 ? 16 : 32>;
};

// call(Tile of T for the larger of both head widths, rounded up)
template <class T, class Call>
auto by_width(const SingleQueryAttentionParams& p, const Call& call) {
  const int width = p.d > p.dv ? p.d : p.dv;
  if constexpr (sizeof(T) == 2)
    if (width <= 16) return call(Tile<T, 16>());
  if (width <= 32) return call(Tile<T, 32>());
  if (width <= 64) return call(Tile<T, 64>());
  return call(Tile<T, 128>());
}

}  // namespace
}  // namespace hybrid
