// Backward: which kernels serve a window side, and the partial sums of the bias gradient that they
// leave in the workspace.
#pragma once

#include "cuda_backward_split.cuh"
#include "cuda_backward_whole.cuh"
#include "cuda_launch.cuh"

namespace hybrid {

template <class T>
int atrous_attention_backward(const AtrousAttentionParams& p, void* stream) {
  return by_width<T>(p, [&](auto tiles) {
    using Whole = typename decltype(tiles)::Whole;
    using Split = typename decltype(tiles)::Split;
    return p.P <= Whole::kWholeSide ? launch_backward_whole<Whole>(p, stream)
                                    : launch_backward_split<Split>(p, stream);
  });
}

template <class T>
int64_t atrous_attention_workspace_bytes(const AtrousAttentionParams& p) {
  return by_width<T>(p, [&](auto tiles) {
    using Whole = typename decltype(tiles)::Whole;
    using Split = typename decltype(tiles)::Split;
    static_assert(Whole::R == Split::R, "both cut the work into the same blocks");
    const int64_t sums = backward_plan<Whole>(p, true).blocks(p) * bias_entries(p.P);
    return sums * static_cast<int64_t>(sizeof(float));
  });
}

}  // namespace hybrid
