#include "cuda_forward.cuh"

template int hybrid::single_query_forward<__half>(const SingleQueryAttentionParams&, const uint8_t*,
                                                  void*);
