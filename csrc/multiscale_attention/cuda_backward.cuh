// Backward in two launches: seven products instead of five, but no partial dq in memory and no
// atomics. A block owns R rows and streams the rows of the other side, C at a time, past them; P
// and dS are recomputed in registers, where they already are the left operand of the products that
// its own rows need.
//   keys     owns keys, streams (q, dout): dk and dv accumulate in registers
//   queries  owns queries, streams (k, v): dq accumulates in registers
#pragma once

#include "../common/attention/cuda_passes.cuh"
#include "cuda_launch.cuh"
#include "cuda_tokens.cuh"

namespace hybrid {
namespace {

// Where the gradient of a key goes; null where nobody wants it.
template <class T>
__device__ __forceinline__ T* key_grad(const MultiscaleAttentionParams& p,
                                       void* AttentionSegment::* which, const Work& work,
                                       int64_t key, int width) {
  int i = 0;
  while (key >= p.segment[i].M) key -= p.segment[i++].M;
  void* grad = p.segment[i].*which;
  return grad ? packed_rows<T>(grad, p.segment[i].M, p.h, width, work)(key) : nullptr;
}

template <class G, Role kRole>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const MultiscaleAttentionParams p, const Vectors vectors, int64_t tiles) {
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
  const Work work(p, tiles, R);
  const auto q = token_rows<T>(p.q, work), dout = token_rows<T>(p.grad_out, work);
  const auto out = packed_rows<const T>(p.out, p.N, p.h, p.dv, work);
  const float* lse_rows = static_cast<const float*>(p.lse) + (work.image * p.h + work.head) * p.N;
  const int64_t own_rows = kOwnsKeys ? p.M : p.N, stream_rows = kOwnsKeys ? p.N : p.M;
  const int owned = static_cast<int>(min(int64_t{R}, own_rows - work.first));
  if constexpr (kOwnsKeys) {
    load_keys<R, G>(own1, vectors.k, p, &AttentionSegment::k, work, work.first, owned, p.d);
    load_keys<R, G>(own2, vectors.v, p, &AttentionSegment::v, work, work.first, owned, p.dv);
  } else {
    load_tokens<R, G>(own1, vectors.q, q, work.first, owned, p.d);
    load_tokens<R, G>(own2, vectors.grad_out, dout, work.first, owned, p.dv);
  }

  typename G::Out grad1, grad2;  // dk, dv   or  dq
  for (int64_t first = 0; first < stream_rows; first += C) {
    const int streamed = static_cast<int>(min(int64_t{C}, stream_rows - first));
    if constexpr (kOwnsKeys) {
      load_tokens<C, G>(stream1, vectors.q, q, first, streamed, p.d);
      load_tokens<C, G>(stream2, vectors.grad_out, dout, first, streamed, p.dv);
    } else {
      load_keys<C, G>(stream1, vectors.k, p, &AttentionSegment::k, work, first, streamed, p.d);
      load_keys<C, G>(stream2, vectors.v, p, &AttentionSegment::v, work, first, streamed, p.dv);
    }
    const bool new_queries = kOwnsKeys || first == 0;
    const int64_t query0 = kOwnsKeys ? first : work.first;
    const int queries = kOwnsKeys ? streamed : owned;
    float lse = INFINITY;  // of a query that does not exist
    if (new_queries) {
      load_tokens<B::kQueries, G>(reinterpret_cast<T*>(tile), vectors.out, out, query0, queries,
                                  p.dv);
      const int row = threadIdx.x / (kThreads / B::kQueries);
      if (row < queries) lse = lse_rows[query0 + row];
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the rows have arrived
    if (new_queries)
      fill_stats<G, B::kQueries>(stats, grad_out, reinterpret_cast<const T*>(tile), lse, queries,
                                 p.dv);
    typename G::Scores x, y;
    G::score(x, own1, stream1, owned, p.d);
    G::score(y, own2, stream2, owned, p.dv);
    __syncthreads();  // the statistics are there, and out has been read: the tile is free
    probabilities<G, kOwnsKeys>(x, y, stats, scale * kLog2e, kOwnsKeys ? owned : streamed);
    if constexpr (kOwnsKeys) G::multiply(grad2, x, tile, stream2, owned, streamed, p.dv);
    G::multiply(grad1, y, tile, stream1, owned, streamed, p.d);
    __syncthreads();  // the streamed rows and the tile are free
  }

  if constexpr (kOwnsKeys) {
    store_grad<G>(grad1, scale, own2, vectors.grads, owned, p.d, [&](int row) {
      return key_grad<T>(p, &AttentionSegment::grad_k, work, work.first + row, p.d);
    });
    store_grad<G>(grad2, 1.0f, own2, vectors.grads, owned, p.dv, [&](int row) {
      return key_grad<T>(p, &AttentionSegment::grad_v, work, work.first + row, p.dv);
    });
  } else {
    const auto rows = packed_rows<T>(p.grad_q, p.N, p.h, p.d, work);
    store_grad<G>(grad1, scale, own2, vectors.grads, owned, p.d,
                  [&](int row) { return rows(work.first + row); });
  }
}

template <class G, Role kRole>
int launch_role(const MultiscaleAttentionParams& p, void* stream) {
  constexpr int bytes = Backward<G, kRole>::kSharedBytes;
  const int64_t tiles = ceil_div<int64_t>(kRole == Role::keys ? p.M : p.N, G::R);
  if (int error = HYBRID_SMEM_OPT_IN((backward_kernel<G, kRole>), bytes)) return error;
  const dim3 grid(static_cast<unsigned>(p.B * p.h * tiles));
  return HYBRID_LAUNCH((backward_kernel<G, kRole>), grid, dim3(kThreads), bytes, stream, p,
                       Vectors(p), tiles);
}

inline bool wants_key_grads(const MultiscaleAttentionParams& p) {
  bool wanted = false;
  for (int i = 0; i < p.segments; ++i)
    wanted = wanted || p.segment[i].grad_k || p.segment[i].grad_v;
  return wanted;
}

}  // namespace

template <class T>
int multiscale_attention_backward(const MultiscaleAttentionParams& p, void* stream) {
  return by_width<T>(p, [&](auto tiles) {
    using G = typename decltype(tiles)::Backward;
    const int error = wants_key_grads(p) ? launch_role<G, Role::keys>(p, stream) : 0;
    return error || !p.grad_q ? error : launch_role<G, Role::queries>(p, stream);
  });
}

}  // namespace hybrid
