// Single-query attention on CUDA: launchers. Tile arithmetic: common/attention/cuda_tile.cuh.
#include "../common/attention/cuda_dtype.cuh"
#include "cuda_launch.cuh"

namespace hybrid {
namespace {

constexpr int kMarkThreads = 512;

// mask[token] = 1 for the excluded tokens of an image, 0 for the others: a block per image.
__global__ void __launch_bounds__(kMarkThreads)
    mark_kernel(uint8_t* mask, const int64_t* exclude, int64_t excluded, int64_t tokens) {
  mask += blockIdx.x * tokens;
  exclude += blockIdx.x * excluded;
  for (int64_t i = threadIdx.x; i < tokens; i += kMarkThreads) mask[i] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < excluded; i += kMarkThreads)
    if (exclude[i] >= 0 && exclude[i] < tokens) mask[exclude[i]] = 1;
}

int64_t partial_bytes(const SingleQueryAttentionParams& p, bool backward) {
  if (backward && !p.grad_query) return 0;
  return works(p, Runs(p)) * p.G * partial_floats(p, backward) * int64_t{sizeof(float)};
}

int64_t workspace_bytes(const SingleQueryAttentionParams& p, bool backward) {
  return partial_bytes(p, backward) + (p.exclude ? p.B * p.N : 0);
}

// The mask behind the partial results: error = launch(mask or null).
template <class Launch>
int with_mask(const SingleQueryAttentionParams& p, bool backward, void* stream,
              const Launch& launch) {
  if (!p.exclude) return launch(nullptr);
  uint8_t* mask = static_cast<uint8_t*>(p.workspace) + partial_bytes(p, backward);
  if (int error = HYBRID_LAUNCH((mark_kernel), dim3(static_cast<unsigned>(p.B)), dim3(kMarkThreads),
                                0, stream, mask, p.exclude, p.excluded, p.N))
    return error;
  return launch(mask);
}

}  // namespace
}  // namespace hybrid

using namespace hybrid;

extern "C" int64_t hk_single_query_attention_forward_workspace(
    const SingleQueryAttentionParams* p) {
  return workspace_bytes(*p, false);
}

extern "C" int64_t hk_single_query_attention_backward_workspace(
    const SingleQueryAttentionParams* p) {
  return workspace_bytes(*p, true);
}

extern "C" int hk_single_query_attention_forward(const SingleQueryAttentionParams* p,
                                                 void* stream) {
  return with_mask(*p, false, stream, [&](const uint8_t* mask) {
    return by_dtype(p->dtype, [&](auto type) {
      return single_query_forward<decltype(type)>(*p, mask, stream);
    });
  });
}

extern "C" int hk_single_query_attention_backward(const SingleQueryAttentionParams* p,
                                                  void* stream) {
  return with_mask(*p, true, stream, [&](const uint8_t* mask) {
    return by_dtype(p->dtype, [&](auto type) {
      return single_query_backward<decltype(type)>(*p, mask, stream);
    });
  });
}
