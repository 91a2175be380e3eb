#include "cuda_backward.cuh"

template int hybrid::region_mix_backward<__half>(const RegionMixParams&, void*);
