// Forward: one block per window, head and tile of R queries. The queries' rows stay in shared
// memory, tiles of C keys and values stream past them, and the output, the running maximum and the
// running sum of every row stay in registers (online softmax, base 2). A window of side 7 with its
// token is a single tile.
#pragma once

#include "cuda_launch.cuh"
#include "cuda_windows.cuh"

namespace hybrid {
namespace {

// The log-sum-exp of pixels outside the map, by the block that owns the token.
__device__ __forceinline__ void clear_lse(float* lse, const Params& p, const Work& work) {
  if (work.first > 0 || work.queries == 1 + p.P * p.P) return;
  for (int s = threadIdx.x; s < p.P * p.P; s += kThreads)
    if (s / p.P >= work.rows || s % p.P >= work.cols) lse[1 + s] = 0.0f;
}

// Blocks per multiprocessor: a fifth, or a third of the widest 16-bit tiles, would spill addresses
// of rows.
template <class G>
constexpr int kWindowBlocks = G::E == 128 && sizeof(typename G::T) == 2 ? 2
                              : G::kForwardBlocks < 4                   ? G::kForwardBlocks
                                                                        : 4;

template <class G>
__global__ void __launch_bounds__(kThreads, kWindowBlocks<G>)
    forward_kernel(const Params p, const Plan plan) {
  using T = typename G::T;
  constexpr int R = G::R, C = G::C, LD = G::LD;
  HYBRID_DYN_SMEM(raw);
  T *query = reinterpret_cast<T*>(raw), *key = query + R * LD, *value = key + C * LD;
  float* scratch = reinterpret_cast<float*>(value + C * LD);
  const Work work(p, plan, R);
  const int queries = min(R, work.queries - work.first);
  if (queries <= 0) return;
  const auto q = qkv_rows<T>(p, work, 0), k = qkv_rows<T>(p, work, 1), v = qkv_rows<T>(p, work, 2);
  load_rows<R, G>(query, plan.qkv, q, work.first, queries, p.d);

  typename G::Out out;
  float maximum[G::kRows], sum[G::kRows];
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) maximum[r] = -INFINITY, sum[r] = 0.0f;
  for (int first = 0; first < work.keys; first += C) {
    const int keys = min(C, work.keys - first);
    if (first > 0) __syncthreads();  // key and value have been read
    load_rows<C, G>(key, plan.qkv, k, first, keys, p.d);
    load_rows<C, G>(value, plan.qkv, v, first, keys, p.d);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the rows have arrived
    typename G::Scores x;
    G::score(x, query, key, queries, p.d);
    to_logits<G>(x, static_cast<float>(p.scale) * kLog2e, queries, keys);
    online_softmax<G, false>(x, out, maximum, sum);
    G::multiply(out, x, scratch, value, queries, keys, p.d);
  }

  float inverse[G::kRows];
  float* lse = lse_row(p, work);
  clear_lse(lse, p, work);
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    const float total = row_sum<G::kRowLanes>(sum[r]);
    inverse[r] = 1.0f / total;
    if (threadIdx.x % G::kRowLanes == 0 && G::row(r) < queries)
      lse[work.slot(p, work.first + G::row(r))] = (maximum[r] + log2f(total)) * kLn2;
  }
  __syncthreads();  // all warps have read the queries, whose place the output takes
  stage<G>(query, out, inverse);
  const auto rows = out_rows<T>(p, work);
  store_own_rows<G>(query, plan.out, queries, p.d, [&](int row) { return rows(work.first + row); });
}

template <class G>
int launch_forward(const Params& p, void* stream) {
  constexpr int bytes = forward_shared_bytes<G>();
  const Plan plan(p, G::R);
  if (int error = HYBRID_SMEM_OPT_IN((forward_kernel<G>), bytes)) return error;
  const dim3 grid(static_cast<unsigned>(plan.blocks(p)));
  return HYBRID_LAUNCH((forward_kernel<G>), grid, dim3(kThreads), bytes, stream, p, plan);
}

}  // namespace

template <class T>
int abstract_token_attention_forward(const Params& p, void* stream) {
  return by_width<T>(p.d, [&](auto tiles) {
    return launch_forward<typename decltype(tiles)::Forward>(p, stream);
  });
}

}  // namespace hybrid
