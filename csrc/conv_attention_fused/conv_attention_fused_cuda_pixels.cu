// The stages of the fused C-MHSA that go by pixels.
#include "cuda_pixels.cuh"

namespace hybrid {

template int launch_values<float>(const Params&, const FusedWorkspace&, void*);
template int launch_grad_x<float>(const Params&, const FusedWorkspace&, void*);
template int launch_grad_value<float>(const Params&, const FusedWorkspace&, void*);
template int launch_values<__nv_bfloat16>(const Params&, const FusedWorkspace&, void*);
template int launch_grad_x<__nv_bfloat16>(const Params&, const FusedWorkspace&, void*);
template int launch_grad_value<__nv_bfloat16>(const Params&, const FusedWorkspace&, void*);
template int launch_values<__half>(const Params&, const FusedWorkspace&, void*);
template int launch_grad_x<__half>(const Params&, const FusedWorkspace&, void*);
template int launch_grad_value<__half>(const Params&, const FusedWorkspace&, void*);

}  // namespace hybrid
