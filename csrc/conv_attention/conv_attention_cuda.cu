// Convolutional attention on CUDA: launchers.
#include "../common/attention/cuda_dtype.cuh"
#include "cuda_gather.cuh"
#include "cuda_windows.cuh"

using namespace hybrid;

extern "C" int hk_conv_attention_forward(const ConvAttentionParams* p, void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    using T = decltype(type);
    return launch_gather<T, false>(*p, StoredLogits<T>(), p->v, p->y, stream);
  });
}

extern "C" int hk_conv_attention_backward(const ConvAttentionParams* p, void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    using T = decltype(type);
    if (const int error = launch_windows<T>(*p, stream)) return error;
    if (!p->grad_v) return 0;
    return launch_gather<T, true>(*p, StoredLogits<T>(), p->grad_out, p->grad_v, stream);
  });
}
