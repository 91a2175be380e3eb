#include "cuda_forward.cuh"

template int hybrid::region_mix_forward<float>(const RegionMixParams&, void*);
