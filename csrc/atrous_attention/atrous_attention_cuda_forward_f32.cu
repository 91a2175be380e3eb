#include "cuda_forward.cuh"

template int hybrid::atrous_attention_forward<float>(const AtrousAttentionParams&, void*);
