// The stages of the fused C-MHSA that go by windows: launchers.
#include "../common/cuda_sums.cuh"
#include "cuda_window_gradients.cuh"

namespace hybrid {

using Params = ConvAttentionFusedParams;

template <class T>
int launch_forward_windows(const Params& p, const FusedWorkspace& from, void* stream) {
  return launch_gather<T, false>(p.windows, GeneratedLogits<T>(p, from),
                                 contiguous_map(p.windows, from.values), p.windows.y, stream);
}

template <class T>
int launch_value_gradients(const Params& p, const FusedWorkspace& w, void* stream) {
  ConvAttentionParams windows = p.windows;
  windows.statistics = w.statistics;
  return launch_gather<T, true>(windows, GeneratedLogits<T>(p, w), windows.grad_out, w.grad_values,
                                stream);
}

template <class T>
int launch_window_gradients(const Params& p, const FusedWorkspace& w, void* stream) {
  ConvAttentionParams windows = p.windows;
  windows.statistics = w.statistics;
  const LogitSums to{w.grad_pooled, p.grad_logit ? w.partial : nullptr,
                     kWindowPairs * windows.h * (windows.C + 1)};
  const WindowSquares squares(windows, to.grad_pooled || to.partial);
  const int64_t count = squares.count(windows);
  const int64_t blocks = to.partial ? partial_blocks(count, 1) : count;
  const int64_t bytes = squares.floats(windows) * 4 + gradient_scratch_bytes<T>();
  if (const int error = HYBRID_SMEM_OPT_IN((window_gradient_kernel<T>), bytes)) return error;
  if (const int error = HYBRID_LAUNCH(
          (window_gradient_kernel<T>), grid_of(blocks), dim3(kThreads), bytes, stream, windows,
          GeneratedLogits<T>(p, w), head_map<T>(windows.grad_out, windows),
          head_map<T>(contiguous_map(windows, w.values), windows), squares, to, count))
    return error;
  if (!p.grad_logit) return 0;
  const int64_t pairs = int64_t{kWindowPairs} * windows.h, entries = pairs * windows.C;
  if (const int error = launch_sum_entries(to.partial, blocks, to.row,
                                           static_cast<float*>(p.grad_logit), entries, stream))
    return error;
  if (!p.grad_bias) return 0;
  return launch_sum_entries(to.partial + entries, blocks, to.row, static_cast<float*>(p.grad_bias),
                            pairs, stream);
}

template int launch_forward_windows<float>(const Params&, const FusedWorkspace&, void*);
template int launch_window_gradients<float>(const Params&, const FusedWorkspace&, void*);
template int launch_value_gradients<float>(const Params&, const FusedWorkspace&, void*);
template int launch_forward_windows<__nv_bfloat16>(const Params&, const FusedWorkspace&, void*);
template int launch_window_gradients<__nv_bfloat16>(const Params&, const FusedWorkspace&, void*);
template int launch_value_gradients<__nv_bfloat16>(const Params&, const FusedWorkspace&, void*);
template int launch_forward_windows<__half>(const Params&, const FusedWorkspace&, void*);
template int launch_window_gradients<__half>(const Params&, const FusedWorkspace&, void*);
template int launch_value_gradients<__half>(const Params&, const FusedWorkspace&, void*);

}  // namespace hybrid
