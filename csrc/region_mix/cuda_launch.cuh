// The launchers of one data type. Each is compiled in a file of its own, which holds nothing but
// its instantiation: region_mix_cuda_<direction>_<dtype>.cu.
#pragma once

#include "../common/stencil/cuda_sums.cuh"
#include "region_mix.h"

namespace hybrid {

// T: float, __nv_bfloat16 or __half.
template <class T>
int region_mix_forward(const RegionMixParams& p, void* stream);
template <class T>
int region_mix_backward(const RegionMixParams& p, void* stream);

namespace {

constexpr int64_t kBackwardBlocks = 1024;  // to aim at

// The partial sums of the taps, then of the bias.
inline Partials partials_of(const RegionMixParams& p) {
  const int64_t terms = (p.grad_weight ? p.side * p.side : 0) + (p.grad_bias ? 1 : 0);
  const int64_t wanted = ceil_div<int64_t>(kBackwardBlocks, channel_tiles(p.C)),
                most = p.B * p.rows * p.columns;
  return {static_cast<float*>(p.workspace), wanted < most ? wanted : most, terms * p.C};
}

template <class T, int V>
bool is_packed(const RegionMixParams& p) {
  return is_packed<T, V>(p.x, p.C) && is_packed<T, V>(p.g, p.C) && is_packed<T, V>(p.grad, p.C) &&
         is_packed<V>(p.weight) && is_packed<V>(p.bias);
}

}  // namespace
}  // namespace hybrid
