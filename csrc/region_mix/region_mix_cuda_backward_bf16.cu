#include "cuda_backward.cuh"

template int hybrid::region_mix_backward<__nv_bfloat16>(const RegionMixParams&, void*);
