#include "cuda_forward.cuh"

template int hybrid::abstract_token_attention_forward<float>(const AbstractTokenAttentionParams&,
                                                             void*);
