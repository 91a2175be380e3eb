// Backward: the parts that the kernels of small and of large windows share.
//
// The gradients of token and pad_kv are sums over all windows: every block leaves what its rows add
// to them in the workspace, and a third launch adds the blocks in order: the same bits every time.
#pragma once

#include "../common/cuda_sums.cuh"
#include "cuda_launch.cuh"
#include "cuda_windows.cuh"

namespace hybrid {
namespace {

constexpr int kSumParts = 5;  // query, key and value of the token, key and value of pad_kv

inline int64_t sum_columns(const Params& p) { return int64_t{kSumParts} * p.h * p.d; }

// What this block's rows add to one head of a part of the sums.
__device__ __forceinline__ float* block_sum(const Params& p, const Plan& plan, const Work& work,
                                            int part) {
  const int64_t entry = work.number * plan.tiles + work.tile;
  return static_cast<float*>(p.workspace) + ((entry * kSumParts + part) * p.h + work.head) * p.d;
}

// The token's and the padding's part of the gradients of `owned` rows, out of the registers that
// hold the row. Pixels outside the map are all alike, hence so are their gradients.
template <class G>
__device__ __forceinline__ void store_sums(const Params& p, const Plan& plan, const Work& work,
                                           typename G::Out& grad, int token_part, int pad_part,
                                           float factor, int owned) {
  if (!p.workspace) return;
  const int pad_row = work.queries - work.first;
  const bool has_pad = pad_row >= 0 && pad_row < owned;
  const float pads = static_cast<float>(work.keys - work.queries);
  float* token = block_sum(p, plan, work, token_part);
  float* pad = block_sum(p, plan, work, pad_part);
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    const bool is_token = G::row(r) == 0;
    const bool is_pad = pad_part && G::row(r) == (has_pad ? pad_row : 0);
    if (!is_token && !is_pad) continue;
#pragma unroll
    for (int n = 0; n < G::kOutCols; ++n) {
      const int c = G::out_col(n);
      if (c >= p.d) continue;
      const float value = factor * grad.at(r, n);
      if (is_token) token[c] = work.first == 0 ? value : 0.0f;
      if (is_pad) pad[c] = has_pad ? pads * value : 0.0f;
    }
  }
}

// What reaches the queries on another way, added to the rows that this warp owns.
template <class G>
__device__ __forceinline__ void add_extra(typename G::Out& grad, const Params& p, const Work& work,
                                          float scale) {
  using T = typename G::T;
  if (!p.dq_extra) return;
  const int64_t* s = p.dq_extra_stride;
  const auto rows = window_rows(static_cast<const T*>(p.dq_extra) + work.head * s[3],
                                {s[0], s[1], s[2]}, work, static_cast<const T*>(nullptr));
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    const int row = work.first + G::row(r);
    const bool exists = row > 0 && row < work.queries;
    const T* from = exists ? rows(row) : nullptr;
#pragma unroll
    for (int n = 0; n < G::kOutCols; ++n) {
      const bool is_channel = exists && G::out_col(n) < p.d;
      const float extra = is_channel ? Convert<T>::to_float(from[G::out_col(n)]) : 0.0f;
      grad.at(r, n) = fmaf(scale, grad.at(r, n), extra);
    }
  }
}

// factor * grad of the pixels on the map to one part of grad_qkv, through `tile`.
template <class G>
__device__ __forceinline__ void store_pixels(typename G::Out& grad, float factor,
                                             typename G::T* tile, const Params& p, const Plan& plan,
                                             const Work& work, int part) {
  using T = typename G::T;
  const auto rows = packed_rows<T>(p, work, p.grad_qkv, 3, part, nullptr);
  store_grad<G>(grad, factor, tile, plan.grad_qkv, work.queries - work.first, p.d,
                [&](int row) { return rows(work.first + row); });
}

template <class G>
__device__ __forceinline__ void store_queries(typename G::Out& grad, float scale,
                                              typename G::T* tile, const Params& p,
                                              const Plan& plan, const Work& work) {
  if (p.dq_extra) {
    add_extra<G>(grad, p, work, scale);
    scale = 1.0f;
  }
  store_pixels<G>(grad, scale, tile, p, plan, work, 0);
}

// The workspace's entries, one per window and tile, added up.
inline int launch_sums_of(const Params& p, const Plan& plan, int first, int parts, void* grad,
                          void* stream) {
  if (!grad) return 0;
  const int64_t entries = plan.blocks(p) / p.h, part = int64_t{p.h} * p.d;
  return launch_sum_entries(static_cast<const float*>(p.workspace) + first * part, entries,
                            sum_columns(p), static_cast<float*>(grad), parts * part, stream);
}

inline int launch_sums(const Params& p, const Plan& plan, void* stream) {
  const int error = launch_sums_of(p, plan, 0, 3, p.grad_token, stream);
  return error ? error : launch_sums_of(p, plan, 3, 2, p.grad_pad_kv, stream);
}

}  // namespace
}  // namespace hybrid
