#include "cuda_forward.cuh"

template int hybrid::region_mix_forward<__nv_bfloat16>(const RegionMixParams&, void*);
