// Atrous window attention on CUDA: launchers. One launch covers all branches, windows and heads;
// the kernels gather the rows of a window by index, straight from qkv through its strides.
// Which windows a block takes: cuda_window.cuh. Tile arithmetic: cuda_tile.cuh.
#include "../common/attention/cuda_dtype.cuh"
#include "cuda_launch.cuh"

using namespace hybrid;

extern "C" int64_t hk_atrous_attention_workspace_bytes(const AtrousAttentionParams* p) {
  return by_dtype(p->dtype,
                  [&](auto type) { return atrous_attention_workspace_bytes<decltype(type)>(*p); });
}

extern "C" int hk_atrous_attention_forward(const AtrousAttentionParams* p, void* stream) {
  return by_dtype(p->dtype,
                  [&](auto type) { return atrous_attention_forward<decltype(type)>(*p, stream); });
}

extern "C" int hk_atrous_attention_backward(const AtrousAttentionParams* p, void* stream) {
  return by_dtype(p->dtype,
                  [&](auto type) { return atrous_attention_backward<decltype(type)>(*p, stream); });
}
