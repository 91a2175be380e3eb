// The fused C-MHSA on CUDA: its stages, one after the other.
#include "../common/attention/cuda_dtype.cuh"
#include "cuda_launch.cuh"

namespace hybrid {
namespace {

using Params = ConvAttentionFusedParams;

template <class T>
int forward(const Params& p, void* stream) {
  const FusedWorkspace workspace(p);
  if (const int error = launch_pool<T>(p, workspace, stream)) return error;
  if (const int error = launch_values<T>(p, workspace, stream)) return error;
  return launch_forward_windows<T>(p, workspace, stream);
}

template <class T>
int backward(const Params& p, void* stream) {
  const FusedWorkspace workspace(p);
  if (const int error = launch_pool<T>(p, workspace, stream)) return error;
  if (workspace.grad_pooled || p.grad_logit)
    if (const int error = launch_values<T>(p, workspace, stream)) return error;
  if (const int error = launch_window_gradients<T>(p, workspace, stream)) return error;
  if (workspace.grad_values)
    if (const int error = launch_value_gradients<T>(p, workspace, stream)) return error;
  if (p.windows.grad_v)
    if (const int error = launch_grad_x<T>(p, workspace, stream)) return error;
  if (p.grad_dw)
    if (const int error = launch_tap_sums<T>(p, workspace, stream)) return error;
  return p.grad_value ? launch_grad_value<T>(p, workspace, stream) : 0;
}

}  // namespace
}  // namespace hybrid

using namespace hybrid;

extern "C" int64_t hk_conv_attention_fused_workspace_bytes(const Params* p) {
  return FusedWorkspace(*p).bytes;
}

extern "C" int hk_conv_attention_fused_forward(const Params* p, void* stream) {
  return by_dtype(p->windows.dtype, [&](auto type) { return forward<decltype(type)>(*p, stream); });
}

extern "C" int hk_conv_attention_fused_backward(const Params* p, void* stream) {
  return by_dtype(p->windows.dtype,
                  [&](auto type) { return backward<decltype(type)>(*p, stream); });
}
