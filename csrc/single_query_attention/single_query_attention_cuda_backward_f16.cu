#include "cuda_backward.cuh"

template int hybrid::single_query_backward<__half>(const SingleQueryAttentionParams&,
                                                   const uint8_t*, void*);
