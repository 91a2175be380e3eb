#include "cuda_backward.cuh"

template int hybrid::multiscale_attention_backward<float>(const MultiscaleAttentionParams&, void*);
