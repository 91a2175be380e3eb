// Backward of windows that fit one tile: everything is read once and written once. The block owns
// all queries of the window, so each row of P is whole in registers: softmax and delta are
// recomputed there, and neither out nor lse is read (an eighth of the bytes). dS in registers is
// the left operand of dq. P, then dS, pass through one tile of shared memory, where the warps read
// them transposed, as left operands of dv and dk, and along the diagonals for the bias sums.
#pragma once

#include "cuda_backward.cuh"

namespace hybrid {
namespace {

template <class G>
int backward_whole_shared_bytes(int P) {
  return 4 * G::R * G::LD * static_cast<int>(sizeof(typename G::T)) + G::kPublished * 4 +
         Tables::bytes(P);
}

template <class G>
__global__ void __launch_bounds__(kThreads, G::kWholeBlocks)
    backward_whole_kernel(const AtrousAttentionParams p, const Plan plan) {
  using T = typename G::T;
  constexpr int R = G::R, E = G::E, LD = G::LD;
  HYBRID_DYN_SMEM(raw);
  T *query = reinterpret_cast<T*>(raw), *key = query + R * LD, *value = key + R * LD;
  T* grad_out = value + R * LD;
  float* tile = reinterpret_cast<float*>(grad_out + R * LD);
  const Tables tables(tile + G::kPublished, p.P);
  const float scale = static_cast<float>(p.scale);
  const Work work = this_work(p, plan);

  float bias_sums[bias_sums_per_thread(G::kWholeSide)] = {};
  for (int64_t w = work.group; w < plan.windows[work.branch]; w += plan.groups[work.branch]) {
    const Window window = window_at(p, plan, work.branch, w);
    const int slots = window.slots;
    fill_slots(tables, window, p.P);
    __syncthreads();
    load_rows<R, E, LD, 3>(query, qkv_view<T>(p, plan, work, window.image, 0), tables, 0, slots,
                           p.e, p.qkv_stride[4]);
    load_rows<R, E, LD>(grad_out, grad_out_view<T>(p, plan, work, window.image), tables, 0, slots,
                        p.e);
    if (w == work.group) fill_bias(tables, p, work);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the rows have arrived

    typename G::Scores x, y;
    G::score(x, query, key, slots, p.e);
    to_logits<G>(x, tables, p.P, scale * kLog2e, 0, 0, slots);
    G::score(y, grad_out, value, slots, p.e);
    softmax_and_gradient<G>(x, y);

    if (p.grad_qkv) {
      G::publish(tile, x);
      __syncthreads();  // P is readable, and value is free: the results leave through it
      typename G::Out grad_value;
      G::multiply_published(grad_value, tile, grad_out, slots, slots, p.e);
      store_grad<G>(grad_value, 1.0f, value, p, plan, work, window, 2, tables, 0);
      __syncthreads();  // P has been read
    }
    G::publish(tile, y);
    __syncthreads();  // dS is readable
    if (p.grad_qkv) {
      typename G::Out grad_key, grad_query;
      G::multiply_published(grad_key, tile, query, slots, slots, p.e);
      store_grad<G>(grad_key, scale, value, p, plan, work, window, 1, tables, 0);
      G::multiply_own(grad_query, y, tile, key, slots, slots, p.e);
      store_grad<G>(grad_query, scale, value, p, plan, work, window, 0, tables, 0);
    }
    if (p.grad_bias)
      add_bias_sums<true, G::kOwnStride, G::kStreamStride>(bias_sums, tile, window, p.P, 0, slots,
                                                           0, slots);
    __syncthreads();  // tables and tiles are free for the next window
  }
  if (p.grad_bias) store_bias_sums(bias_sums, p);
}

template <class G>
int launch_backward_whole(const AtrousAttentionParams& p, void* stream) {
  if (!p.grad_qkv && !p.grad_bias) return 0;
  const Plan plan = backward_plan<G>(p, p.grad_bias);
  const int bytes = backward_whole_shared_bytes<G>(p.P);
  if (int error = HYBRID_SMEM_OPT_IN((backward_whole_kernel<G>), bytes)) return error;
  const dim3 grid(static_cast<unsigned>(plan.blocks(p)));
  const int error =
      HYBRID_LAUNCH((backward_whole_kernel<G>), grid, dim3(kThreads), bytes, stream, p, plan);
  return error ? error : launch_reduce_bias<G>(p, stream);
}

}  // namespace
}  // namespace hybrid
