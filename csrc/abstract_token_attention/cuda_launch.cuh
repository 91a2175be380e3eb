// The launchers of one data type. Each is compiled in a file of its own, which holds nothing but
// its instantiation: abstract_token_attention_cuda_<direction>_<dtype>.cu.
#pragma once

#include "../common/attention/cuda_passes.cuh"
#include "abstract_token_attention.h"

namespace hybrid {

// T: float, __nv_bfloat16 or __half.
template <class T>
int abstract_token_attention_forward(const AbstractTokenAttentionParams& p, void* stream);
template <class T>
int abstract_token_attention_backward(const AbstractTokenAttentionParams& p, void* stream);
template <class T>
int64_t abstract_token_attention_workspace_bytes(const AbstractTokenAttentionParams& p);

}  // namespace hybrid
