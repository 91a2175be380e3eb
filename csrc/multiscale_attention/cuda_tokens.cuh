// Multiscale attention on CUDA: which rows a block works on, and where they lie. Queries are cut
// into tiles of one image and head. The keys of all segments are one axis: a tile of keys may hold
// the end of one segment and the beginning of the next.
#pragma once

#include "../common/attention/cuda_tokens.cuh"
#include "multiscale_attention.h"

namespace hybrid {
namespace {

// The image, head and tile of a block; neighbouring blocks are heads of one tile, whose rows lie
// side by side in memory.
struct Work {
  int64_t image;
  int head;
  int64_t first;  // row

  __device__ __forceinline__ Work(const MultiscaleAttentionParams& p, int64_t tiles, int rows) {
    const int64_t block = blockIdx.x, rest = block / p.h;
    head = static_cast<int>(block - rest * p.h);
    image = rest / tiles;
    first = (rest - image * tiles) * rows;
  }
};

// Which tensors' rows can move by 16 bytes.
struct Vectors {
  bool q, k, v, out, grad_out, grads;

  explicit Vectors(const MultiscaleAttentionParams& p) {
    q = is_vector(p.dtype, p.q, p.d);
    k = v = grads = true;
    for (int i = 0; i < p.segments; ++i) {
      const AttentionSegment& s = p.segment[i];
      k = k && (s.M == 0 || is_vector(p.dtype, s.k, p.d));
      v = v && (s.M == 0 || is_vector(p.dtype, s.v, p.dv));
      grads = grads && is_vector(p.dtype, s.grad_k, nullptr, p.d) &&
              is_vector(p.dtype, s.grad_v, nullptr, p.dv);
    }
    out = is_vector(p.dtype, p.out, nullptr, p.dv);
    grad_out = is_vector(p.dtype, p.grad_out, p.dv);
    grads = grads && is_vector(p.dtype, p.grad_q, nullptr, p.d);
  }
};

// Reads rows first.. of queries or of their like into a tile; `rows` of them exist.
template <int kRows, class G>
__device__ __forceinline__ void load_tokens(typename G::T* tile, bool vector,
                                            const TokenRows<const typename G::T>& from,
                                            int64_t first, int rows, int e) {
  copy_rows<kRows, G::E, G::LD>(tile, vector, rows, e, from.base, 0,
                                [&](int row) { return from(first + row); });
}

// The same for keys (or values): rows of the joined axis of all segments.
template <int kRows, class G>
__device__ __forceinline__ void load_keys(typename G::T* tile, bool vector,
                                          const MultiscaleAttentionParams& p,
                                          AttentionTokens AttentionSegment::* which,
                                          const Work& work, int64_t first, int rows, int e) {
  using T = typename G::T;
  const auto address = [&](int row) {
    int64_t key = first + row;
    int i = 0;
    while (key >= p.segment[i].M) key -= p.segment[i++].M;
    return token_rows<T>(p.segment[i].*which, work)(key);
  };
  copy_rows<kRows, G::E, G::LD>(tile, vector, rows, e, static_cast<const T*>(p.q.data), 0, address);
}

}  // namespace
}  // namespace hybrid
