// Forward: one block per image, head and tile of R queries. The queries' rows stay in shared
// memory, tiles of C keys and values stream past them, and the output, the running maximum and the
// running sum of every row stay in registers (online softmax, base 2).
#pragma once

#include "../common/attention/cuda_passes.cuh"
#include "cuda_launch.cuh"
#include "cuda_tokens.cuh"

namespace hybrid {
namespace {

// Blocks per multiprocessor: a sixth would spill what the online softmax keeps.
template <class G>
constexpr int kForwardBlocks = G::kForwardBlocks < 5 ? G::kForwardBlocks : 5;

template <class G>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<G>)
    forward_kernel(const MultiscaleAttentionParams p, const Vectors vectors, int64_t tiles) {
  using T = typename G::T;
  constexpr int R = G::R, C = G::C, LD = G::LD;
  HYBRID_DYN_SMEM(raw);
  T *query = reinterpret_cast<T*>(raw), *key = query + R * LD, *value = key + C * LD;
  float* scratch = reinterpret_cast<float*>(value + C * LD);
  const Work work(p, tiles, R);
  const int queries = static_cast<int>(min(int64_t{R}, p.N - work.first));
  load_tokens<R, G>(query, vectors.q, token_rows<T>(p.q, work), work.first, queries, p.d);

  typename G::Out out;
  float maximum[G::kRows], sum[G::kRows];
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) maximum[r] = -INFINITY, sum[r] = 0.0f;
  for (int64_t first = 0; first < p.M; first += C) {
    const int keys = static_cast<int>(min(int64_t{C}, p.M - first));
    if (first > 0) __syncthreads();  // key and value have been read
    load_keys<C, G>(key, vectors.k, p, &AttentionSegment::k, work, first, keys, p.d);
    load_keys<C, G>(value, vectors.v, p, &AttentionSegment::v, work, first, keys, p.dv);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the rows have arrived
    typename G::Scores x;
    G::score(x, query, key, queries, p.d);
    to_logits<G>(x, static_cast<float>(p.scale) * kLog2e, queries, keys);
    online_softmax<G, false>(x, out, maximum, sum);
    G::multiply(out, x, scratch, value, queries, keys, p.dv);
  }

  float inverse[G::kRows];
  float* lse = static_cast<float*>(p.lse) + (work.image * p.h + work.head) * p.N + work.first;
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    const float total = row_sum<G::kRowLanes>(sum[r]);
    inverse[r] = 1.0f / total;
    if (threadIdx.x % G::kRowLanes == 0 && G::row(r) < queries)
      lse[G::row(r)] = (maximum[r] + log2f(total)) * kLn2;
  }
  __syncthreads();  // all warps have read the queries, whose place the output takes
  stage<G>(query, out, inverse);
  const auto rows = packed_rows<T>(p.out, p.N, p.h, p.dv, work);
  store_own_rows<G>(query, vectors.out, queries, p.dv,
                    [&](int row) { return rows(work.first + row); });
}

template <class G>
int launch_forward(const MultiscaleAttentionParams& p, void* stream) {
  constexpr int bytes = forward_shared_bytes<G>();
  const int64_t tiles = ceil_div<int64_t>(p.N, G::R);
  if (int error = HYBRID_SMEM_OPT_IN((forward_kernel<G>), bytes)) return error;
  const dim3 grid(static_cast<unsigned>(p.B * p.h * tiles));
  return HYBRID_LAUNCH((forward_kernel<G>), grid, dim3(kThreads), bytes, stream, p, Vectors(p),
                       tiles);
}

}  // namespace

template <class T>
int multiscale_attention_forward(const MultiscaleAttentionParams& p, void* stream) {
  return by_width<T>(
      p, [&](auto tiles) { return launch_forward<typename decltype(tiles)::Forward>(p, stream); });
}

}  // namespace hybrid
