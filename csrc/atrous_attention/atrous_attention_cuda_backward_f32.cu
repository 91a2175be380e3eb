#include "cuda_backward_launch.cuh"

template int hybrid::atrous_attention_backward<float>(const AtrousAttentionParams&, void*);
template int64_t hybrid::atrous_attention_workspace_bytes<float>(const AtrousAttentionParams&);
