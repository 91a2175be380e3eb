// Window attention with abstract tokens on CUDA: launchers. Tile arithmetic:
// common/attention/cuda_tile.cuh.
#include "../common/attention/cuda_dtype.cuh"
#include "cuda_launch.cuh"

using namespace hybrid;

extern "C" int64_t hk_abstract_token_attention_workspace_bytes(
    const AbstractTokenAttentionParams* p) {
  return by_dtype(p->dtype, [&](auto type) {
    return abstract_token_attention_workspace_bytes<decltype(type)>(*p);
  });
}

extern "C" int hk_abstract_token_attention_forward(const AbstractTokenAttentionParams* p,
                                                   void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    return abstract_token_attention_forward<decltype(type)>(*p, stream);
  });
}

extern "C" int hk_abstract_token_attention_backward(const AbstractTokenAttentionParams* p,
                                                    void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    return abstract_token_attention_backward<decltype(type)>(*p, stream);
  });
}
