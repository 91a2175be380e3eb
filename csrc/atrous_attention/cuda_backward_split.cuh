// Backward of windows of more than one tile, in two launches: seven products instead of five, but
// no partial dq in memory and no atomics. A block owns R rows and streams the rows of the other
// side, C at a time, past them; P and dS are recomputed in registers, where they already are the
// left operand of the products that its own rows need.
//   keys     owns keys, streams (q, dout): dk and dv accumulate in registers
//   queries  owns queries, streams (k, v): dq accumulates in registers; dS goes through shared
//            memory to the bias sums
#pragma once

#include "cuda_backward.cuh"

namespace hybrid {
namespace {

enum class Role { keys, queries };

template <class G, Role kRole>
struct Split {
  using T = typename G::T;
  static constexpr bool kOwnsKeys = kRole == Role::keys;
  static constexpr int kQueries = kOwnsKeys ? G::C : G::R;  // rows of a query tile
  // One buffer holds out's rows until delta is known, then what multiply and publish write.
  static constexpr int kOutFloats = kQueries * G::LD * static_cast<int>(sizeof(T)) / 4;
  static constexpr int kTile = kOutFloats > G::kPublished ? kOutFloats : G::kPublished;

  static int shared_bytes(int P) {
    return 2 * (G::R + G::C) * G::LD * static_cast<int>(sizeof(T)) + (kTile + 2 * kQueries) * 4 +
           Tables::bytes(P);
  }
};

// x: q k^T -> P. y: dout v^T -> dS. Both are zero where there is no key (a logit of -inf) or no
// query (a log-sum-exp of +inf).
template <class G, Role kRole>
__device__ __forceinline__ void probabilities(typename G::Scores& x, typename G::Scores& y,
                                              const QueryStats& stats, const Tables& tables, int P,
                                              float scale, int own0, int stream0) {
  constexpr bool kOwnsKeys = Split<G, kRole>::kOwnsKeys;
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    const int row = G::row(r), own = own0 + row;
    const float* bias =
        tables.bias + (kOwnsKeys ? tables.key_entry[own] : tables.query_entry(own, P));
#pragma unroll
    for (int n = 0; n < G::kCols; ++n) {
      const int col = G::col(n), streamed = stream0 + col;
      const int entry = kOwnsKeys ? tables.query_entry(streamed, P) : tables.key_entry[streamed];
      const int query = kOwnsKeys ? col : row;
      const float logit = fmaf(x.at(r, n), scale, bias[entry]);
      x.at(r, n) = exp2_approx(logit - stats.lse[query]);
      y.at(r, n) = x.at(r, n) * (y.at(r, n) - stats.delta[query]);
    }
  }
}

template <class G, Role kRole>
__global__ void __launch_bounds__(kThreads, 2)
    backward_split_kernel(const AtrousAttentionParams p, const Plan plan) {
  using T = typename G::T;
  using B = Split<G, kRole>;
  constexpr int R = G::R, C = G::C, E = G::E, LD = G::LD;
  constexpr bool kOwnsKeys = B::kOwnsKeys;
  HYBRID_DYN_SMEM(raw);
  T *own1 = reinterpret_cast<T*>(raw), *own2 = own1 + R * LD;  // k, v   or  q, dout
  T *stream1 = own2 + R * LD, *stream2 = stream1 + C * LD;     // q, dout  or  k, v
  float* tile = reinterpret_cast<float*>(stream2 + C * LD);
  const QueryStats stats{tile + B::kTile, tile + B::kTile + B::kQueries};
  const Tables tables(stats.delta + B::kQueries, p.P);
  const T* grad_out = kOwnsKeys ? stream2 : own2;
  const float scale = static_cast<float>(p.scale);
  const Work work = this_work(p, plan);
  const int own0 = work.tile * R;
  const bool need_bias = !kOwnsKeys && p.grad_bias;
  fill_bias(tables, p, work);

  float bias_sums[bias_sums_per_thread(kMaxWindow)] = {};
  for (int64_t w = work.group; w < plan.windows[work.branch]; w += plan.groups[work.branch]) {
    const Window window = window_at(p, plan, work.branch, w);
    const int slots = window.slots, owned = min(R, slots - own0);
    if (owned <= 0) continue;
    fill_slots(tables, window, p.P);
    __syncthreads();
    const auto q = qkv_view<T>(p, plan, work, window.image, 0);
    const auto k = qkv_view<T>(p, plan, work, window.image, 1);
    const auto dout = grad_out_view<T>(p, plan, work, window.image);
    const int64_t to_value = p.qkv_stride[4];
    if constexpr (kOwnsKeys) {
      load_rows<R, E, LD, 2>(own1, k, tables, own0, slots, p.e, to_value);
    } else {
      load_rows<R, E, LD>(own1, q, tables, own0, slots, p.e);
      load_rows<R, E, LD>(own2, dout, tables, own0, slots, p.e);
    }

    typename G::Out grad1, grad2;  // dk, dv   or  dq
    for (int stream0 = 0; stream0 < slots; stream0 += C) {
      const int streamed = min(C, slots - stream0);
      if constexpr (kOwnsKeys) {
        load_rows<C, E, LD>(stream1, q, tables, stream0, slots, p.e);
        load_rows<C, E, LD>(stream2, dout, tables, stream0, slots, p.e);
      } else {
        load_rows<C, E, LD, 2>(stream1, k, tables, stream0, slots, p.e, to_value);
      }
      const bool new_queries = kOwnsKeys || stream0 == 0;
      const int query0 = kOwnsKeys ? stream0 : own0;
      float lse = INFINITY;  // of a query that does not exist
      if (new_queries) {
        const auto out = packed_view<const T>(p, plan, work, window.image, p.out, 1, 0, p.e);
        load_rows<B::kQueries, E, LD>(reinterpret_cast<T*>(tile), out, tables, query0, slots, p.e);
        const int row = query0 + threadIdx.x / (kThreads / B::kQueries);
        const auto from = packed_view<const float>(p, plan, work, window.image, p.lse, 1, 0, 1);
        if (row < slots) lse = *from.at(tables.pixel[row]);
      }
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();  // the rows have arrived
      if (new_queries)
        fill_stats<G, B::kQueries>(stats, grad_out, reinterpret_cast<const T*>(tile), lse,
                                   slots - query0, p.e);
      typename G::Scores x, y;
      G::score(x, own1, stream1, owned, p.e);
      G::score(y, own2, stream2, owned, p.e);
      __syncthreads();  // the statistics are there, and out has been read: the tile is free
      probabilities<G, kRole>(x, y, stats, tables, p.P, scale * kLog2e, own0, stream0);
      if (p.grad_qkv) {
        if constexpr (kOwnsKeys) G::multiply(grad2, x, tile, stream2, owned, streamed, p.e);
        G::multiply(grad1, y, tile, stream1, owned, streamed, p.e);
      }
      if (need_bias) {
        G::publish(tile, y);
        __syncthreads();  // dS is readable
        add_bias_sums<false, G::kOwnStride, G::kStreamStride>(bias_sums, tile, window, p.P, own0,
                                                              owned, stream0, streamed);
      }
      __syncthreads();  // the streamed rows and the tile are free
    }

    if (p.grad_qkv) {
      store_grad<G>(grad1, scale, own2, p, plan, work, window, kOwnsKeys ? 1 : 0, tables, own0);
      if constexpr (kOwnsKeys)
        store_grad<G>(grad2, 1.0f, own2, p, plan, work, window, 2, tables, own0);
    }
    __syncthreads();  // tables and tiles are free for the next window
  }

  if (need_bias) store_bias_sums(bias_sums, p);
}

template <class G, Role kRole>
int launch_role(const AtrousAttentionParams& p, void* stream) {
  const Plan plan = backward_plan<G>(p, kRole == Role::queries && p.grad_bias);
  const int bytes = Split<G, kRole>::shared_bytes(p.P);
  if (int error = HYBRID_SMEM_OPT_IN((backward_split_kernel<G, kRole>), bytes)) return error;
  const dim3 grid(static_cast<unsigned>(plan.blocks(p)));
  return HYBRID_LAUNCH((backward_split_kernel<G, kRole>), grid, dim3(kThreads), bytes, stream, p,
                       plan);
}

template <class G>
int launch_backward_split(const AtrousAttentionParams& p, void* stream) {
  int error = p.grad_qkv ? launch_role<G, Role::keys>(p, stream) : 0;
  if (!error && (p.grad_qkv || p.grad_bias)) error = launch_role<G, Role::queries>(p, stream);
  return error ? error : launch_reduce_bias<G>(p, stream);
}

}  // namespace
}  // namespace hybrid
