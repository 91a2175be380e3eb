// Multiscale attention on CUDA: launchers. Tile arithmetic: common/attention/cuda_tile.cuh.
#include "cuda_launch.cuh"

namespace hybrid {
namespace {

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

// call(a value of the data type)
template <class Call>
int by_dtype(const MultiscaleAttentionParams* p, const Call& call) {
  switch (p->dtype) {
    case DType::f32:
      return call(float());
    case DType::bf16:
      return call(__nv_bfloat16());
    case DType::f16:
      return call(__half());
    default:
      return kInvalidValue;
  }
}

}  // namespace
}  // namespace hybrid

using namespace hybrid;

extern "C" int64_t hk_multiscale_attention_workspace_bytes(const MultiscaleAttentionParams*) {
  return 0;
}

extern "C" int hk_multiscale_attention_forward(const MultiscaleAttentionParams* p, void* stream) {
  return by_dtype(
      p, [&](auto type) { return multiscale_attention_forward<decltype(type)>(*p, stream); });
}

extern "C" int hk_multiscale_attention_backward(const MultiscaleAttentionParams* p, void* stream) {
  return by_dtype(
      p, [&](auto type) { return multiscale_attention_backward<decltype(type)>(*p, stream); });
}
