// The launchers of one data type. Each is compiled in a file of its own, which holds nothing but
// its instantiation: multiscale_attention_cuda_<direction>_<dtype>.cu.
#pragma once

#include "../common/attention/cuda_tile.cuh"
#include "multiscale_attention.h"

namespace hybrid {

// T: float, __nv_bfloat16 or __half.
template <class T>
int multiscale_attention_forward(const MultiscaleAttentionParams& p, void* stream);
template <class T>
int multiscale_attention_backward(const MultiscaleAttentionParams& p, void* stream);

namespace {

// 128 channels take smaller tiles where two accumulators or float32 rows would not fit.
template <class T, int E>
struct Tiles {
  using Forward = Mma<T, E, 64>;
  using Backward = Mma<T, E, E == 128 ? 32 : 64>;
};
template <int E>
struct Tiles<float, E> {
  using Forward = Fma<E, E == 128 ? 32 : 64>;
  using Backward = Forward;
};

// call(Tiles of T for the larger of both head widths, rounded up to 32, 64 or 128)
template <class T, class Call>
int by_width(const MultiscaleAttentionParams& p, const Call& call) {
  const int width = p.d > p.dv ? p.d : p.dv;
  if (width <= 32) return call(Tiles<T, 32>());
  if (width <= 64) return call(Tiles<T, 64>());
  return call(Tiles<T, 128>());
}

}  // namespace
}  // namespace hybrid
