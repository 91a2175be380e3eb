#include "cuda_backward_launch.cuh"

template int hybrid::atrous_attention_backward<__nv_bfloat16>(const AtrousAttentionParams&, void*);
template int64_t hybrid::atrous_attention_workspace_bytes<__nv_bfloat16>(
    const AtrousAttentionParams&);
