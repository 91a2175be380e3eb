#include "cuda_forward.cuh"

template int hybrid::abstract_token_attention_forward<__nv_bfloat16>(
    const AbstractTokenAttentionParams&, void*);
