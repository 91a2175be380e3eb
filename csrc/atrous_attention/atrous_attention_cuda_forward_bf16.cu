#include "cuda_forward.cuh"

template int hybrid::atrous_attention_forward<__nv_bfloat16>(const AtrousAttentionParams&, void*);
