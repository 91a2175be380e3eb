#include "cuda_backward.cuh"

template int hybrid::region_mix_backward<float>(const RegionMixParams&, void*);
