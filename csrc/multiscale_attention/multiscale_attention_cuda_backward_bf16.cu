#include "cuda_backward.cuh"

template int hybrid::multiscale_attention_backward<__nv_bfloat16>(const MultiscaleAttentionParams&,
                                                                  void*);
