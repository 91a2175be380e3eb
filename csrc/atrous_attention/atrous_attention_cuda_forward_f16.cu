#include "cuda_forward.cuh"

template int hybrid::atrous_attention_forward<__half>(const AtrousAttentionParams&, void*);
