#include "cuda_forward.cuh"

template int hybrid::multiscale_attention_forward<float>(const MultiscaleAttentionParams&, void*);
