// The launchers of one data type. Each is compiled in a file of its own, which holds nothing but
// its instantiation: atrous_attention_cuda_<direction>_<dtype>.cu. A change to one of them is
// rebuilt in seconds, and a whole build uses every core.
#pragma once

#include "cuda_window.cuh"

namespace hybrid {

// T: float, __nv_bfloat16 or __half.
template <class T>
int atrous_attention_forward(const AtrousAttentionParams& p, void* stream);
template <class T>
int atrous_attention_backward(const AtrousAttentionParams& p, void* stream);
template <class T>
int64_t atrous_attention_workspace_bytes(const AtrousAttentionParams& p);

namespace {

// Tiles of the forward, of the backward of small windows and of that of large ones. 128 channels
// take smaller tiles where two accumulators or float32 rows would not fit.
template <class T, int E>
struct Tiles {
  using Forward = Mma<T, E, 64>;
  using Whole = Mma<T, E, 64>;
  using Split = Mma<T, E, E == 128 ? 32 : 64>;
};
template <int E>
struct Tiles<float, E> {
  using Forward = Fma<E, E == 128 ? 32 : 64>;
  using Whole = Forward;
  using Split = Forward;
};

// call(Tiles of T for the head width, rounded up to 32, 64 or 128)
template <class T, class Call>
auto by_width(const AtrousAttentionParams& p, const Call& call) {
  if (p.e <= 32) return call(Tiles<T, 32>());
  if (p.e <= 64) return call(Tiles<T, 64>());
  return call(Tiles<T, 128>());
}

}  // namespace
}  // namespace hybrid
