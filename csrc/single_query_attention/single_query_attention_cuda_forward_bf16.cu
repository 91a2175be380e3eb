#include "cuda_forward.cuh"

template int hybrid::single_query_forward<__nv_bfloat16>(const SingleQueryAttentionParams&,
                                                         const uint8_t*, void*);
