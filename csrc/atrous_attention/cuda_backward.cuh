// Backward: the parts that the kernels of small and of large windows share. With
// P[s,t] = exp(S[s,t] - lse_s) and delta_s = <dout_s, out_s> = sum_t P[s,t] <dout_s, v_t>:
//   dS = P (dout v^T - delta)     dv = P^T dout     dk = scale dS^T q     dq = scale dS k
// A window's rows belong to one branch, image, phase and head only, so that every gradient is
// written once, without atomics.
//
// Bias gradient: thread r owns relative offset r (and r + 128, ...) and adds up the dS[s,t] of its
// pairs, s ascending, in a register over all windows of its block; the block leaves its sums in the
// workspace, and reduce_bias_kernel adds the blocks in order: the same bits on every run.
#pragma once

#include "cuda_window.cuh"

namespace hybrid {
namespace {

// Sums per thread for windows up to this side.
constexpr __host__ __device__ int bias_sums_per_thread(int side) {
  return (4 * side * (side - 1) + kThreads) / kThreads;
}

// Sum of the published dS over the pairs (s, t) of this tile with relative offset r. The lanes of a
// warp have neighbouring r, hence read neighbouring t of the same s: different banks.
template <bool kWhole, int kQueryStride, int kKeyStride>
__device__ __forceinline__ float bias_sum(const float* ds, int r, const Window& window, int P,
                                          int query0, int queries, int key0, int keys) {
  const int da = r / (2 * P - 1) - (P - 1), db = r % (2 * P - 1) - (P - 1);
  const int shift = da * window.cols + db;  // s - t
  float sum = 0.0f;
  for (int a = max(0, da); a < min(window.rows, window.rows + da); ++a) {
    for (int b = 0; b < window.cols; ++b) {
      if (static_cast<unsigned>(b - db) >= static_cast<unsigned>(window.cols)) continue;
      const int s = a * window.cols + b - query0, t = s + query0 - shift - key0;
      if (!kWhole && (static_cast<unsigned>(s) >= static_cast<unsigned>(queries) ||
                      static_cast<unsigned>(t) >= static_cast<unsigned>(keys)))
        continue;
      sum += ds[s * kQueryStride + t * kKeyStride];
    }
  }
  return sum;
}

// Adds this tile to the sums of the thread's offsets.
template <bool kWhole, int kQueryStride, int kKeyStride, int kSums>
__device__ __forceinline__ void add_bias_sums(float (&sums)[kSums], const float* ds,
                                              const Window& window, int P, int query0, int queries,
                                              int key0, int keys) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int r = threadIdx.x + i * kThreads;
    if (r < bias_entries(P))
      sums[i] +=
          bias_sum<kWhole, kQueryStride, kKeyStride>(ds, r, window, P, query0, queries, key0, keys);
  }
}

template <int kSums>
__device__ __forceinline__ void store_bias_sums(const float (&sums)[kSums],
                                                const AtrousAttentionParams& p) {
  float* partial =
      static_cast<float*>(p.workspace) + static_cast<int64_t>(blockIdx.x) * bias_entries(p.P);
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int r = threadIdx.x + i * kThreads;
    if (r < bias_entries(p.P)) partial[r] = sums[i];
  }
}

// grad_bias[k, r, head] = sum of the blocks' sums, in 16 strands of every 16th block, then strand
// by strand. A warp takes 32 neighbouring r of one strand.
constexpr int kStrands = 16;

__global__ void __launch_bounds__(32 * kStrands)
    reduce_bias_kernel(const AtrousAttentionParams p, const Plan plan) {
  HYBRID_SHARED(float, strand_sums, [kStrands][32]);
  const int entries = bias_entries(p.P), chunks = divide_up(entries, 32);
  const int chunk = blockIdx.x % chunks, pair = blockIdx.x / chunks;
  const int branch = pair / p.h, head = pair % p.h;
  const int lane = threadIdx.x % 32, strand = threadIdx.x / 32, r = chunk * 32 + lane;
  const int64_t first = plan.first_block[branch] + head;
  const int64_t blocks = plan.groups[branch] * plan.tiles;
  float sum = 0.0f;
  if (r < entries) {
    const float* from = static_cast<const float*>(p.workspace) + first * entries + r;
#pragma unroll 4
    for (int64_t j = strand; j < blocks; j += kStrands) sum += from[j * p.h * entries];
  }
  strand_sums[strand][lane] = sum;
  __syncthreads();
  if (strand > 0 || r >= entries) return;
  for (int i = 1; i < kStrands; ++i) sum += strand_sums[i][lane];
  static_cast<float*>(p.grad_bias)[(static_cast<int64_t>(branch) * entries + r) * p.h + head] = sum;
}

// scale * grad -> rows first.. of grad_qkv's part, through `tile`, whose own rows the warp may use.
template <class G>
__device__ __forceinline__ void store_grad(typename G::Out& grad, float scale, typename G::T* tile,
                                           const AtrousAttentionParams& p, const Plan& plan,
                                           const Work& work, const Window& window, int part,
                                           const Tables& tables, int first) {
  float factor[G::kRows];
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) factor[r] = scale;
  stage<G>(tile, grad, factor);
  const auto view =
      packed_view<typename G::T>(p, plan, work, window.image, p.grad_qkv, 3, part, p.e);
  store_warp_rows<G>(tile, view, tables, first, window.slots, p.e);
}

// Every block leaves bias sums in the workspace: fewer blocks then, yet enough to fill any GPU.
template <class G>
Plan backward_plan(const AtrousAttentionParams& p, bool need_bias) {
  return make_plan(p, G::R, need_bias ? 2048 : kManyBlocks);
}

template <class G>
int launch_reduce_bias(const AtrousAttentionParams& p, void* stream) {
  if (!p.grad_bias) return 0;
  const Plan plan = backward_plan<G>(p, true);
  const dim3 grid(p.n * p.h * divide_up(bias_entries(p.P), 32));
  return HYBRID_LAUNCH((reduce_bias_kernel), grid, dim3(32 * kStrands), 0, stream, p, plan);
}

}  // namespace
}  // namespace hybrid
