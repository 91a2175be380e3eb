#include "cuda_backward.cuh"

template int hybrid::abstract_token_attention_backward<__nv_bfloat16>(
    const AbstractTokenAttentionParams&, void*);
template int64_t hybrid::abstract_token_attention_workspace_bytes<__nv_bfloat16>(
    const AbstractTokenAttentionParams&);
