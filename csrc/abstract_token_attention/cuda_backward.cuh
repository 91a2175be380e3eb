// Backward in two launches: seven products instead of five, but no partial dq in memory and no
// atomics. A block owns R rows of a window and streams the rows of the other side past them; P and
// dS are recomputed in registers, where they already are the left operand of the products that its
// own rows need.
//   keys     owns keys, streams (q, dout): dk and dv accumulate in registers
//   queries  owns queries, streams (k, v): dq accumulates in registers
//
// The gradients of token and pad_kv are sums over all windows: every block leaves what its rows add
// to them in the workspace, and a third launch adds the blocks in order: the same bits on every run.
#pragma once

#include "../common/attention/cuda_sums.cuh"
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

// factor * the sum of rows [begin, end) of a float tile, in ascending order.
template <class G>
__device__ __forceinline__ void store_row_sum(float* to, const float* tile, float factor, int begin,
                                              int end, int e) {
  for (int c = threadIdx.x; c < e; c += kThreads) {
    float sum = 0.0f;
    for (int row = begin; row < end; ++row) sum += tile[row * G::E + c];
    to[c] = factor * sum;
  }
}

// Accumulators to a float tile of R rows, readable for the whole block.
template <class G>
__device__ __forceinline__ void spread(float* tile, typename G::Out& out) {
  __syncthreads();  // what stood there has been read
#pragma unroll
  for (int r = 0; r < G::kRows; ++r)
#pragma unroll
    for (int n = 0; n < G::kOutCols; ++n) tile[G::row(r) * G::E + G::out_col(n)] = out.at(r, n);
  __syncthreads();
}

// The token's and the padding's part of the gradients that a block of `owned` rows holds.
template <class G>
__device__ __forceinline__ void store_sums(const Params& p, const Plan& plan, const Work& work,
                                           float* tile, typename G::Out& grad, int token_part,
                                           int pad_part, float factor, int owned) {
  if (!p.workspace) return;
  spread<G>(tile, grad);
  store_row_sum<G>(block_sum(p, plan, work, token_part), tile, factor, 0, work.first == 0, p.d);
  if (pad_part)
    store_row_sum<G>(block_sum(p, plan, work, pad_part), tile, factor,
                     max(0, work.queries - work.first), owned, p.d);
}

// What reaches the queries on another way, added to the rows that this warp owns.
template <class G>
__device__ __forceinline__ void add_extra(typename G::Out& grad, const Params& p, const Work& work,
                                          float scale, int owned) {
  using T = typename G::T;
  if (!p.dq_extra) return;
  const int64_t* s = p.dq_extra_stride;
  const auto rows = window_rows(static_cast<const T*>(p.dq_extra) + work.head * s[3],
                                {s[0], s[1], s[2]}, work, static_cast<const T*>(nullptr));
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    const int row = work.first + G::row(r);
    const bool exists = G::row(r) < owned && row > 0;
    const T* from = exists ? rows(row) : nullptr;
#pragma unroll
    for (int n = 0; n < G::kOutCols; ++n) {
      const bool is_channel = exists && G::out_col(n) < p.d;
      const float extra = is_channel ? Convert<T>::to_float(from[G::out_col(n)]) : 0.0f;
      grad.at(r, n) = fmaf(scale, grad.at(r, n), extra);
    }
  }
}

template <class G, Role kRole>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const Params p, const Plan plan) {
  using T = typename G::T;
  using B = Backward<G, kRole>;
  constexpr int R = G::R, C = G::C, LD = G::LD;
  constexpr bool kOwnsKeys = B::kOwnsKeys;
  HYBRID_DYN_SMEM(raw);
  T *own1 = reinterpret_cast<T*>(raw), *own2 = own1 + R * LD;  // k, v   or  q, dout
  T *stream1 = own2 + R * LD, *stream2 = stream1 + C * LD;     // q, dout  or  k, v
  float* tile = reinterpret_cast<float*>(stream2 + C * LD);
  const QueryStats stats{tile + B::kTile, tile + B::kTile + B::kQueries};
  const T* grad_out = kOwnsKeys ? stream2 : own2;
  const float scale = static_cast<float>(p.scale);
  const Work work(p, plan, R);
  const int own_rows = kOwnsKeys ? work.keys : work.queries;
  const int stream_rows = kOwnsKeys ? work.queries : work.keys;
  const int owned = max(0, min(R, own_rows - work.first));
  const auto q = qkv_rows<T>(p, work, 0), k = qkv_rows<T>(p, work, 1), v = qkv_rows<T>(p, work, 2);
  const auto dout = grad_out_rows<T>(p, work);
  const WindowRows<T> written = out_rows<T>(p, work);
  const float* lse_rows = lse_row(p, work);
  load_rows<R, G>(own1, plan.qkv, kOwnsKeys ? k : q, work.first, owned, p.d);
  load_rows<R, G>(own2, kOwnsKeys ? plan.qkv : plan.grad_out, kOwnsKeys ? v : dout, work.first,
                  owned, p.d);

  typename G::Out grad1, grad2;  // dk, dv   or  dq
  for (int first = 0; first < stream_rows; first += C) {
    const int streamed = min(C, stream_rows - first);
    load_rows<C, G>(stream1, plan.qkv, kOwnsKeys ? q : k, first, streamed, p.d);
    load_rows<C, G>(stream2, kOwnsKeys ? plan.grad_out : plan.qkv, kOwnsKeys ? dout : v, first,
                    streamed, p.d);
    const bool new_queries = kOwnsKeys || first == 0;
    const int query0 = kOwnsKeys ? first : work.first, queries = kOwnsKeys ? streamed : owned;
    float lse = INFINITY;  // of a query that does not exist
    if (new_queries) {
      copy_rows<B::kQueries, G::E, LD>(
          reinterpret_cast<T*>(tile), plan.out, queries, p.d, static_cast<const T*>(written.pixels),
          0, [&](int row) { return static_cast<const T*>(written(query0 + row)); });
      const int row = threadIdx.x / (kThreads / B::kQueries);
      if (row < queries) lse = lse_rows[work.slot(p, query0 + row)];
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the rows have arrived
    if (new_queries)
      fill_stats<G, B::kQueries>(stats, grad_out, reinterpret_cast<const T*>(tile), lse, queries,
                                 p.d);
    typename G::Scores x, y;
    G::score(x, own1, stream1, owned, p.d);
    G::score(y, own2, stream2, owned, p.d);
    __syncthreads();  // the statistics are there, and out has been read: the tile is free
    probabilities<G, kOwnsKeys>(x, y, stats, scale * kLog2e, kOwnsKeys ? owned : streamed);
    if constexpr (kOwnsKeys) G::multiply(grad2, x, tile, stream2, owned, streamed, p.d);
    G::multiply(grad1, y, tile, stream1, owned, streamed, p.d);
    __syncthreads();  // the streamed rows and the tile are free
  }

  float* const sums = reinterpret_cast<float*>(raw);  // all tiles have been read
  if constexpr (kOwnsKeys) {
    store_sums<G>(p, plan, work, sums, grad1, 1, 3, scale, owned);
    store_sums<G>(p, plan, work, sums, grad2, 2, 4, 1.0f, owned);
  } else {
    store_sums<G>(p, plan, work, sums, grad1, 0, 0, scale, owned);
  }
  if (!p.grad_qkv) return;
  __syncthreads();  // the sums have been read
  const auto store = [&](typename G::Out& grad, float factor, int part) {
    const auto rows = packed_rows<T>(p, work, p.grad_qkv, 3, part, nullptr);
    store_grad<G>(grad, factor, own2, plan.grad_qkv, owned, p.d,
                  [&](int row) { return rows(work.first + row); });
  };
  if constexpr (kOwnsKeys) {
    store(grad1, scale, 1);
    store(grad2, 1.0f, 2);
  } else if (p.dq_extra) {
    add_extra<G>(grad1, p, work, scale, owned);
    store(grad1, 1.0f, 0);
  } else {
    store(grad1, scale, 0);
  }
}

template <class G, Role kRole>
int launch_role(const Params& p, const Plan& plan, void* stream) {
  constexpr int bytes = Backward<G, kRole>::kSharedBytes;
  static_assert(bytes >= G::R * G::E * 4, "the sums pass through a float tile");
  if (int error = HYBRID_SMEM_OPT_IN((backward_kernel<G, kRole>), bytes)) return error;
  const dim3 grid(static_cast<unsigned>(plan.blocks(p)));
  return HYBRID_LAUNCH((backward_kernel<G, kRole>), grid, dim3(kThreads), bytes, stream, p, plan);
}

// The workspace's entries, one per window and tile, added up.
inline int launch_sums(const Params& p, const Plan& plan, int first, int parts, void* grad,
                       void* stream) {
  if (!grad) return 0;
  const int64_t entries = plan.blocks(p) / p.h, part = int64_t{p.h} * p.d;
  return launch_sum_entries(static_cast<const float*>(p.workspace) + first * part, entries,
                            sum_columns(p), static_cast<float*>(grad), parts * part, stream);
}

}  // namespace

template <class T>
int64_t abstract_token_attention_workspace_bytes(const Params& p) {
  if (!p.grad_token && !p.grad_pad_kv) return 0;
  int64_t entries = 0;
  by_width<T>(p.d, [&](auto tiles) {
    entries = Plan(p, decltype(tiles)::Backward::R).blocks(p) / p.h;
    return 0;
  });
  return entries * sum_columns(p) * 4;
}

template <class T>
int abstract_token_attention_backward(const Params& p, void* stream) {
  return by_width<T>(p.d, [&](auto tiles) {
    using G = typename decltype(tiles)::Backward;
    const Plan plan(p, G::R);
    int error = launch_role<G, Role::keys>(p, plan, stream);
    if (!error && (p.grad_qkv || p.grad_token))
      error = launch_role<G, Role::queries>(p, plan, stream);
    if (!error) error = launch_sums(p, plan, 0, 3, p.grad_token, stream);
    return error ? error : launch_sums(p, plan, 3, 2, p.grad_pad_kv, stream);
  });
}

}  // namespace hybrid
