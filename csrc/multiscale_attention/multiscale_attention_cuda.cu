// Multiscale attention on CUDA: launchers. Tile arithmetic: common/attention/cuda_tile.cuh.
#include "../common/attention/cuda_dtype.cuh"
#include "cuda_launch.cuh"

using namespace hybrid;

extern "C" int64_t hk_multiscale_attention_workspace_bytes(const MultiscaleAttentionParams*) {
  return 0;
}

extern "C" int hk_multiscale_attention_forward(const MultiscaleAttentionParams* p, void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    return multiscale_attention_forward<decltype(type)>(*p, stream);
  });
}

extern "C" int hk_multiscale_attention_backward(const MultiscaleAttentionParams* p, void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    return multiscale_attention_backward<decltype(type)>(*p, stream);
  });
}
