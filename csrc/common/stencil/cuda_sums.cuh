// Gradients of parameters in two stages without atomics: every block leaves the sums over its
// pixels, and a second kernel adds those in a fixed order.
#pragma once

#include "../cuda_sums.cuh"
#include "cuda_channels.cuh"

namespace hybrid {
namespace {

// Partial sums (parts, row), one row of them per block of pixels.
struct Partials {
  float* data;
  int64_t parts, row;

  int64_t bytes() const { return parts * row * int64_t{sizeof(float)}; }
};

// The sums of a value over the slots of a block, in ascending order; `to` points at the thread's
// channels. All threads take part; those without channels pass null.
template <int V>
__device__ __forceinline__ void store_block_sum(const Channels<V>& value, int lane, int slot,
                                                float* to) {
  HYBRID_SHARED(float, sums, [kThreads][V]);
  __syncthreads();  // the sums before have been read
#pragma unroll
  for (int i = 0; i < V; ++i) sums[threadIdx.x][i] = value.v[i];
  __syncthreads();
  if (slot != 0 || !to) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    float total = 0;
    for (int s = 0; s < kSlots<V>; ++s) total += sums[s * kLanes<V> + lane][i];
    to[i] = total;
  }
}

// out[i] = the sum over all parts of element first + i, unless out is null.
inline int fold(const Partials& partials, int64_t first, int64_t columns, void* out, void* stream) {
  if (!out) return 0;
  return launch_sum_entries(partials.data + first, partials.parts, partials.row,
                            static_cast<float*>(out), columns, stream);
}

}  // namespace
}  // namespace hybrid
