#include "cuda_backward.cuh"

template int hybrid::multiscale_attention_backward<__half>(const MultiscaleAttentionParams&, void*);
