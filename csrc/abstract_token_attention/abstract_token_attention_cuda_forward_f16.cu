#include "cuda_forward.cuh"

template int hybrid::abstract_token_attention_forward<__half>(const AbstractTokenAttentionParams&,
                                                              void*);
