#include "cuda_forward.cuh"

template int hybrid::multiscale_attention_forward<__nv_bfloat16>(const MultiscaleAttentionParams&,
                                                                 void*);
