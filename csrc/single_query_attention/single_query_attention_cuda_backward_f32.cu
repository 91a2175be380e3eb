#include "cuda_backward.cuh"

template int hybrid::single_query_backward<float>(const SingleQueryAttentionParams&, const uint8_t*,
                                                  void*);
