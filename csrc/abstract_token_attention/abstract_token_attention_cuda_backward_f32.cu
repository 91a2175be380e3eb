#include "cuda_backward.cuh"

template int hybrid::abstract_token_attention_backward<float>(const AbstractTokenAttentionParams&,
                                                              void*);
template int64_t hybrid::abstract_token_attention_workspace_bytes<float>(
    const AbstractTokenAttentionParams&);
