// The second stage of deterministic reductions: partial sums added in a fixed order.
#pragma once

#include "device.h"
#include "types.h"

namespace hybrid {
namespace {

constexpr int kStrands = 16;

// to[c] = sum over entries of partial[entry * columns + c], c < count: in 16 strands of every 16th
// entry, then strand by strand. A warp takes 32 neighbouring c of one strand.
__global__ void __launch_bounds__(32 * kStrands)
    sum_entries_kernel(const float* partial, int64_t entries, int64_t columns, float* to,
                       int64_t count) {
  HYBRID_SHARED(float, strand_sums, [kStrands][32]);
  const int lane = threadIdx.x % 32, strand = threadIdx.x / 32;
  const int64_t c = int64_t{blockIdx.x} * 32 + lane;
  float sum = 0.0f;
  if (c < count) {
#pragma unroll 4
    for (int64_t i = strand; i < entries; i += kStrands) sum += partial[i * columns + c];
  }
  strand_sums[strand][lane] = sum;
  __syncthreads();
  if (strand > 0 || c >= count) return;
  for (int i = 1; i < kStrands; ++i) sum += strand_sums[i][lane];
  to[c] = sum;
}

inline int launch_sum_entries(const float* partial, int64_t entries, int64_t columns, float* to,
                              int64_t count, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(count, 32)));
  return HYBRID_LAUNCH((sum_entries_kernel), grid, dim3(32 * kStrands), 0, stream, partial, entries,
                       columns, to, count);
}

}  // namespace
}  // namespace hybrid
