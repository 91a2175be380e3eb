// The launchers of one data type. Each is compiled in a file of its own, which holds nothing but
// its instantiation: multiscale_attention_cuda_<direction>_<dtype>.cu.
#pragma once

#include "../common/attention/cuda_passes.cuh"
#include "multiscale_attention.h"

namespace hybrid {

// T: float, __nv_bfloat16 or __half.
template <class T>
int multiscale_attention_forward(const MultiscaleAttentionParams& p, void* stream);
template <class T>
int multiscale_attention_backward(const MultiscaleAttentionParams& p, void* stream);

namespace {

// call(Tiles of T for the larger of both head widths)
template <class T, class Call>
int by_width(const MultiscaleAttentionParams& p, const Call& call) {
  return by_width<T>(p.d > p.dv ? p.d : p.dv, call);
}

}  // namespace
}  // namespace hybrid
