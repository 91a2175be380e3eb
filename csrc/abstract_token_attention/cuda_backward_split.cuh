// Backward of windows beyond one tile, in two launches: seven products instead of five, but no
// partial dq in memory and no atomics. A block owns R rows of a window and streams the rows of the
// other side past them; P and dS are recomputed in registers, where they already are the left
// operand of the products that its own rows need.
//   keys     owns keys, streams (q, dout): dk and dv accumulate in registers
//   queries  owns queries, streams (k, v): dq accumulates in registers
#pragma once

#include "cuda_backward_shared.cuh"

namespace hybrid {
namespace {

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

  if constexpr (kOwnsKeys) {
    store_sums<G>(p, plan, work, grad1, 1, 3, scale, owned);
    store_sums<G>(p, plan, work, grad2, 2, 4, 1.0f, owned);
  } else {
    store_sums<G>(p, plan, work, grad1, 0, 0, scale, owned);
  }
  if (!p.grad_qkv) return;
  if constexpr (kOwnsKeys) {
    store_pixels<G>(grad1, scale, own2, p, plan, work, 1);
    store_pixels<G>(grad2, 1.0f, own2, p, plan, work, 2);
  } else {
    store_queries<G>(grad1, scale, own2, p, plan, work);
  }
}

template <class G, Role kRole>
int launch_role(const Params& p, const Plan& plan, void* stream) {
  constexpr int bytes = Backward<G, kRole>::kSharedBytes;
  if (int error = HYBRID_SMEM_OPT_IN((backward_kernel<G, kRole>), bytes)) return error;
  const dim3 grid(static_cast<unsigned>(plan.blocks(p)));
  return HYBRID_LAUNCH((backward_kernel<G, kRole>), grid, dim3(kThreads), bytes, stream, p, plan);
}

template <class G>
int launch_split(const Params& p, void* stream) {
  const Plan plan(p, G::R);
  int error = launch_role<G, Role::keys>(p, plan, stream);
  if (!error && (p.grad_qkv || p.grad_token))
    error = launch_role<G, Role::queries>(p, plan, stream);
  return error ? error : launch_sums(p, plan, stream);
}

}  // namespace
}  // namespace hybrid
