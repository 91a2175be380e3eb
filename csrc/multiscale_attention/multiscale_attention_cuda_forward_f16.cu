#include "cuda_forward.cuh"

template int hybrid::multiscale_attention_forward<__half>(const MultiscaleAttentionParams&, void*);
