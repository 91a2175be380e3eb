// Convolutional attention on CUDA: launchers.
#include "../common/attention/cuda_dtype.cuh"
#include "cuda_gather.cuh"
#include "cuda_windows.cuh"

using namespace hybrid;

extern "C" int hk_conv_attention_forward(const ConvAttentionParams* p, void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    return launch_gather<decltype(type), false>(*p, p->v, p->y, stream);
  });
}

extern "C" int hk_conv_attention_backward(const ConvAttentionParams* p, void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    using T = decltype(type);
    if (const int error = launch_windows<T>(*p, stream)) return error;
    return p->grad_v ? launch_gather<T, true>(*p, p->grad_out, p->grad_v, stream) : 0;
  });
}
