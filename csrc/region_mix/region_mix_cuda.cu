// region_mix on CUDA: launchers. Kernels: cuda_forward.cuh, cuda_backward.cuh.
#include "../common/attention/cuda_dtype.cuh"
#include "cuda_launch.cuh"

using namespace hybrid;

extern "C" int64_t hk_region_mix_workspace_bytes(const RegionMixParams* p) {
  return partials_of(*p).bytes();
}

extern "C" int hk_region_mix_forward(const RegionMixParams* p, void* stream) {
  return by_dtype(p->dtype,
                  [&](auto type) { return region_mix_forward<decltype(type)>(*p, stream); });
}

extern "C" int hk_region_mix_backward(const RegionMixParams* p, void* stream) {
  return by_dtype(p->dtype,
                  [&](auto type) { return region_mix_backward<decltype(type)>(*p, stream); });
}
