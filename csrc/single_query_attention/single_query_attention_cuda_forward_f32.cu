#include "cuda_forward.cuh"

template int hybrid::single_query_forward<float>(const SingleQueryAttentionParams&, const uint8_t*,
                                                 void*);
