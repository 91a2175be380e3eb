#include "cuda_backward.cuh"

template int hybrid::single_query_backward<__nv_bfloat16>(const SingleQueryAttentionParams&,
                                                          const uint8_t*, void*);
