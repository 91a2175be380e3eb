// Backward of windows that fit one tile with their token: everything is read once and written once.
// The block owns all queries of the window, so each row of P is whole in registers: softmax and
// delta are recomputed there, and neither out nor lse is read. dS in registers is the left operand
// of dq. P, then dS, pass through one tile of shared memory, where the warps read them transposed,
// as left operands of dv and dk.
#pragma once

#include "cuda_backward_shared.cuh"

namespace hybrid {
namespace {

template <class G>
constexpr int whole_shared_bytes() {
  return 4 * G::R * G::LD * static_cast<int>(sizeof(typename G::T)) + G::kPublished * 4;
}

template <class G>
__global__ void __launch_bounds__(kThreads, G::kWholeBlocks)
    backward_whole_kernel(const Params p, const Plan plan) {
  using T = typename G::T;
  constexpr int R = G::R, LD = G::LD;
  HYBRID_DYN_SMEM(raw);
  T *query = reinterpret_cast<T*>(raw), *key = query + R * LD, *value = key + R * LD;
  T* grad_out = value + R * LD;
  float* tile = reinterpret_cast<float*>(grad_out + R * LD);
  const float scale = static_cast<float>(p.scale);
  const Work work(p, plan, R);
  const int queries = work.queries, keys = work.keys;
  load_rows<R, G>(query, plan.qkv, qkv_rows<T>(p, work, 0), 0, queries, p.d);
  load_rows<R, G>(key, plan.qkv, qkv_rows<T>(p, work, 1), 0, keys, p.d);
  load_rows<R, G>(value, plan.qkv, qkv_rows<T>(p, work, 2), 0, keys, p.d);
  load_rows<R, G>(grad_out, plan.grad_out, grad_out_rows<T>(p, work), 0, queries, p.d);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();  // the rows have arrived

  typename G::Scores x, y;
  G::score(x, query, key, queries, p.d);
  to_logits<G>(x, scale * kLog2e, queries, keys);
  G::score(y, grad_out, value, queries, p.d);
  softmax_and_gradient<G>(x, y);

  G::publish(tile, x);
  __syncthreads();  // P is readable, and value is free: the results leave through it
  typename G::Out grad_value;
  G::multiply_published(grad_value, tile, grad_out, keys, queries, p.d);
  store_sums<G>(p, plan, work, grad_value, 2, 4, 1.0f, keys);
  if (p.grad_qkv) store_pixels<G>(grad_value, 1.0f, value, p, plan, work, 2);
  __syncthreads();  // P has been read
  G::publish(tile, y);
  __syncthreads();  // dS is readable
  typename G::Out grad_key, grad_query;
  G::multiply_published(grad_key, tile, query, keys, queries, p.d);
  store_sums<G>(p, plan, work, grad_key, 1, 3, scale, keys);
  if (p.grad_qkv) store_pixels<G>(grad_key, scale, value, p, plan, work, 1);
  G::multiply_own(grad_query, y, tile, key, queries, keys, p.d);
  store_sums<G>(p, plan, work, grad_query, 0, 0, scale, queries);
  if (p.grad_qkv) store_queries<G>(grad_query, scale, value, p, plan, work);
}

template <class G>
int launch_whole(const Params& p, void* stream) {
  constexpr int bytes = whole_shared_bytes<G>();
  const Plan plan(p, G::R);
  if (int error = HYBRID_SMEM_OPT_IN((backward_whole_kernel<G>), bytes)) return error;
  const dim3 grid(static_cast<unsigned>(plan.blocks(p)));
  const int error =
      HYBRID_LAUNCH((backward_whole_kernel<G>), grid, dim3(kThreads), bytes, stream, p, plan);
  return error ? error : launch_sums(p, plan, stream);
}

}  // namespace
}  // namespace hybrid
