#include "cuda_forward.cuh"

template int hybrid::region_mix_forward<__half>(const RegionMixParams&, void*);
