// Forward: one block per window, head and tile of R queries. The queries' rows stay in shared
// memory, key and value tiles of C rows stream past them, and the output, the running maximum and
// the running sum of every row stay in registers (online softmax, base 2). A window of side 8 or
// less is a single tile: one gather, one softmax, no second trip. While one block waits for its
// rows, others on the same multiprocessor compute; the op is bound by memory.
#pragma once

#include "cuda_launch.cuh"

namespace hybrid {
namespace {

template <class G>
int forward_shared_bytes(int P) {
  return (G::R + 2 * G::C) * G::LD * static_cast<int>(sizeof(typename G::T)) + G::kScratch * 4 +
         Tables::bytes(P);
}

template <class G, bool kWhole>  // whole: a window is one tile
__global__ void __launch_bounds__(kThreads, kWhole ? G::kForwardBlocks : 2)
    forward_kernel(const AtrousAttentionParams p, const Plan plan) {
  using T = typename G::T;
  constexpr int R = G::R, C = G::C, E = G::E, LD = G::LD;
  static_assert(R == C, "query, key and value tiles are alike");
  HYBRID_DYN_SMEM(raw);
  T *query = reinterpret_cast<T*>(raw), *key = query + R * LD, *value = key + C * LD;
  float* scratch = reinterpret_cast<float*>(value + C * LD);
  const Tables tables(scratch + G::kScratch, p.P);
  const Work work = this_work(p, plan);
  const int query0 = kWhole ? 0 : work.tile * R;
  bool have_bias = false;

  for (int64_t w = work.group; w < plan.windows[work.branch]; w += plan.groups[work.branch]) {
    const Window window = window_at(p, plan, work.branch, w);
    const int slots = window.slots, queries = min(R, slots - query0);
    if (queries <= 0) continue;
    fill_slots(tables, window, p.P);
    __syncthreads();
    typename G::Out out;
    float maximum[G::kRows], sum[G::kRows];
#pragma unroll
    for (int r = 0; r < G::kRows; ++r) maximum[r] = -INFINITY, sum[r] = 0.0f;
    for (int key0 = 0; key0 < (kWhole ? 1 : slots); key0 += C) {
      if (key0 > 0) __syncthreads();               // key and value have been read
      if (kWhole || (query0 == 0 && key0 == 0)) {  // three times the same slots
        load_rows<R, E, LD, 3>(query, qkv_view<T>(p, plan, work, window.image, 0), tables, 0, slots,
                               p.e, p.qkv_stride[4]);
      } else {
        if (key0 == 0)
          load_rows<R, E, LD>(query, qkv_view<T>(p, plan, work, window.image, 0), tables, query0,
                              slots, p.e);
        load_rows<C, E, LD, 2>(key, qkv_view<T>(p, plan, work, window.image, 1), tables, key0,
                               slots, p.e, p.qkv_stride[4]);
      }
      if (!have_bias) fill_bias(tables, p, work);
      have_bias = true;
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();  // the rows have arrived
      const int keys = min(C, slots - key0);
      typename G::Scores x;
      G::score(x, query, key, queries, p.e);
      to_logits<G>(x, tables, p.P, static_cast<float>(p.scale) * kLog2e, query0, key0, queries);
      online_softmax<G, kWhole>(x, out, maximum, sum);
      G::multiply(out, x, scratch, value, queries, keys, p.e);
    }

    float inverse[G::kRows];
    const View<float> lse = packed_view<float>(p, plan, work, window.image, p.lse, 1, 0, 1);
#pragma unroll
    for (int r = 0; r < G::kRows; ++r) {
      const float total = row_sum<G::kRowLanes>(sum[r]);
      inverse[r] = 1.0f / total;
      if (threadIdx.x % G::kRowLanes == 0 && G::row(r) < queries)
        *lse.at(tables.pixel[query0 + G::row(r)]) = (maximum[r] + log2f(total)) * kLn2;
    }
    stage<G>(query, out, inverse);
    store_warp_rows<G>(query, packed_view<T>(p, plan, work, window.image, p.out, 1, 0, p.e), tables,
                       query0, slots, p.e);
    __syncthreads();  // tables and tiles are free for the next window
  }
}

template <class G, bool kWhole>
int launch_forward(const AtrousAttentionParams& p, void* stream) {
  const Plan plan = make_plan(p, G::R, kManyBlocks);
  const int bytes = forward_shared_bytes<G>(p.P);
  if (int error = HYBRID_SMEM_OPT_IN((forward_kernel<G, kWhole>), bytes)) return error;
  const dim3 grid(static_cast<unsigned>(plan.blocks(p)));
  return HYBRID_LAUNCH((forward_kernel<G, kWhole>), grid, dim3(kThreads), bytes, stream, p, plan);
}

}  // namespace

template <class T>
int atrous_attention_forward(const AtrousAttentionParams& p, void* stream) {
  return by_width<T>(p, [&](auto tiles) {
    using G = typename decltype(tiles)::Forward;
    return p.P <= G::kWholeSide ? launch_forward<G, true>(p, stream)
                                : launch_forward<G, false>(p, stream);
  });
}

}  // namespace hybrid
