// hybrid::atrous_attention: schema, argument checks, tensors -> parameter struct, registration.
#include "atrous_attention.h"

#include <cmath>
#include <tuple>

#include "../common/cpu_isa.h"
#include "../common/launch.h"
#include "../common/tensors.h"

namespace hybrid {
namespace {

constexpr const char* kOp = "atrous_attention";

AtrousAttentionParams checked_params(const Tensor& qkv, const std::optional<Tensor>& bias,
                                     const std::vector<int64_t>& dilations, int64_t window,
                                     double scale) {
  check(qkv.dim() == 7, kOp, ": qkv has ", qkv.dim(), " dimensions, shape ", shape_text(qkv),
        "; expected 7: (B, H, W, branches, 3, heads, head width)");
  check(qkv.size(4) == 3, kOp, ": qkv has size ", qkv.size(4), " in dimension 4, shape ",
        shape_text(qkv), "; expected 3 (query, key, value)");
  const int64_t n = qkv.size(3), h = qkv.size(5), e = qkv.size(6);
  check(n >= 1 && n <= kMaxBranches, kOp, ": qkv has ", n, " branches; expected 1 to ",
        kMaxBranches, "; call the op for groups of branches");
  check(static_cast<int64_t>(dilations.size()) == n, kOp, ": dilations = ", tuple_text(dilations),
        " has ", dilations.size(), " entries; expected one for each of the ", n,
        " branches of qkv");
  for (int64_t dilation : dilations)
    check(dilation >= 1 && dilation <= INT32_MAX, kOp, ": dilations = ", tuple_text(dilations),
          "; expected every dilation >= 1");
  check(window >= 1 && window <= kMaxWindow, kOp, ": window = ", window, "; expected 1 to ",
        kMaxWindow, "; for larger windows use scaled_dot_product_attention on atrous_partition");
  check(h >= 1, kOp, ": qkv has no heads, shape ", shape_text(qkv));
  check(e >= 1 && e <= kMaxHeadDim, kOp, ": qkv has head width ", e, "; expected 1 to ",
        kMaxHeadDim);
  check(std::isfinite(scale), kOp, ": scale = ", scale, "; expected a finite number");

  AtrousAttentionParams p{};
  p.dtype = dtype_of(kOp, "qkv", qkv);
  p.B = qkv.size(0);
  p.H = qkv.size(1);
  p.W = qkv.size(2);
  p.n = static_cast<int32_t>(n);
  p.h = static_cast<int32_t>(h);
  p.e = static_cast<int32_t>(e);
  p.P = static_cast<int32_t>(window);
  for (int64_t k = 0; k < n; ++k) p.dilations[k] = static_cast<int32_t>(dilations[k]);
  p.scale = scale;
  if (bias) {
    const int64_t offsets = (2 * window - 1) * (2 * window - 1);
    check_shape(kOp, "bias", *bias, {n, offsets, h}, "(branches, (2 window - 1)^2, heads)");
    check_dtype(kOp, "bias", *bias, accumulate_type(qkv.scalar_type()));
    check_same_device(kOp, "bias", *bias, "qkv", qkv);
  }
  return p;
}

bool is_empty(const AtrousAttentionParams& p) { return p.B == 0 || p.H == 0 || p.W == 0; }

// The tensors that a launch reads, kept alive until it returns.
struct Inputs {
  Tensor qkv, bias, grad_out;

  Inputs(AtrousAttentionParams& p, const Tensor& qkv_any, const std::optional<Tensor>& bias_any)
      : qkv(unit_last_stride(qkv_any)) {
    p.qkv = qkv.const_data_ptr();
    copy_strides(qkv, p.qkv_stride);
    if (!bias_any) return;
    bias = torch::stable::contiguous(*bias_any);
    p.bias = bias.const_data_ptr();
  }

  void add_grad(AtrousAttentionParams& p, const Tensor& grad_any) {
    grad_out = unit_last_stride(grad_any);
    p.grad_out = grad_out.const_data_ptr();
    copy_strides(grad_out, p.grad_out_stride);
  }
};

template <class Launch>
std::tuple<Tensor, Tensor> forward(const Tensor& qkv, const std::optional<Tensor>& bias,
                                   const std::vector<int64_t>& dilations, int64_t window,
                                   double scale, const Launch& launch) {
  AtrousAttentionParams p = checked_params(qkv, bias, dilations, window, scale);
  const ScalarType type = qkv.scalar_type();
  Tensor out = empty_like_type(qkv, {p.B, p.H, p.W, p.n, p.h, p.e}, type);
  Tensor lse = empty_like_type(qkv, {p.B, p.H, p.W, p.n, p.h}, accumulate_type(type));
  if (is_empty(p)) return {out, lse};
  const Inputs inputs(p, qkv, bias);
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();
  launch(p);
  return {out, lse};
}

template <class WorkspaceBytes, class Launch>
std::tuple<Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& qkv,
                                    const std::optional<Tensor>& bias, const Tensor& out,
                                    const Tensor& lse, const std::vector<int64_t>& dilations,
                                    int64_t window, double scale, bool need_qkv, bool need_bias,
                                    const WorkspaceBytes& workspace_bytes, const Launch& launch) {
  AtrousAttentionParams p = checked_params(qkv, bias, dilations, window, scale);
  const ScalarType type = qkv.scalar_type();
  const std::vector<int64_t> out_shape{p.B, p.H, p.W, p.n, p.h, p.e};
  for (const auto& [name, tensor] : {std::pair{"grad_out", &grad_out}, {"out", &out}}) {
    check_shape(kOp, name, *tensor, out_shape, "(B, H, W, branches, heads, head width)");
    check_dtype(kOp, name, *tensor, type);
    check_same_device(kOp, name, *tensor, "qkv", qkv);
  }
  check_shape(kOp, "lse", lse, {p.B, p.H, p.W, p.n, p.h}, "(B, H, W, branches, heads)");
  check_dtype(kOp, "lse", lse, accumulate_type(type));
  check_same_device(kOp, "lse", lse, "qkv", qkv);
  check(!need_bias || bias.has_value(), kOp, ": need_bias is true but bias is None");

  Tensor grad_qkv = empty_like_type(qkv, {0}, type);
  Tensor grad_bias = empty_like_type(qkv, {0}, accumulate_type(type));
  if (need_qkv) grad_qkv = empty_like_type(qkv, {p.B, p.H, p.W, p.n, 3, p.h, p.e}, type);
  if (need_bias) {
    const int64_t offsets = (2 * window - 1) * (2 * window - 1);
    grad_bias = empty_like_type(qkv, {p.n, offsets, p.h}, accumulate_type(type));
  }
  if (is_empty(p)) {
    if (need_bias) torch::stable::zero_(grad_bias);
    return {grad_qkv, grad_bias};
  }
  if (!need_qkv && !need_bias) return {grad_qkv, grad_bias};

  Inputs inputs(p, qkv, bias);
  inputs.add_grad(p, grad_out);
  const Tensor out_dense = torch::stable::contiguous(out);
  const Tensor lse_dense = torch::stable::contiguous(lse);
  p.out = out_dense.mutable_data_ptr();
  p.lse = lse_dense.mutable_data_ptr();
  if (need_qkv) p.grad_qkv = grad_qkv.mutable_data_ptr();
  if (need_bias) p.grad_bias = grad_bias.mutable_data_ptr();
  const Tensor workspace = new_workspace(qkv, workspace_bytes(p), p.workspace);
  launch(p);
  return {grad_qkv, grad_bias};
}

#if !defined(HYBRID_HOST_EMULATOR)

// One call of `kernel` for each worker; what each of them takes from the queue is its own affair.
template <class Kernel>
void run_on_workers(const AtrousAttentionParams& p, int64_t chunks, const Kernel& kernel) {
  ChunkQueue queue{0, chunks};
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t, int64_t) { kernel(p, queue); });
}

std::tuple<Tensor, Tensor> forward_cpu(Tensor qkv, std::optional<Tensor> bias,
                                       std::vector<int64_t> dilations, int64_t window,
                                       double scale) {
  return forward(qkv, bias, dilations, window, scale, [](const AtrousAttentionParams& p) {
    const AtrousAttentionCpu& kernels = cpu_table<AtrousAttentionCpu>();
    run_on_workers(p, kernels.chunks(p), kernels.forward);
  });
}

std::tuple<Tensor, Tensor> backward_cpu(Tensor grad_out, Tensor qkv, std::optional<Tensor> bias,
                                        Tensor out, Tensor lse, std::vector<int64_t> dilations,
                                        int64_t window, double scale, bool need_qkv,
                                        bool need_bias) {
  const AtrousAttentionCpu& kernels = cpu_table<AtrousAttentionCpu>();
  return backward(grad_out, qkv, bias, out, lse, dilations, window, scale, need_qkv, need_bias,
                  kernels.workspace_bytes, [&](const AtrousAttentionParams& p) {
                    run_on_workers(p, kernels.chunks(p), kernels.backward);
                    if (p.grad_bias) kernels.reduce_bias(p);
                  });
}

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

std::tuple<Tensor, Tensor> forward_cuda(Tensor qkv, std::optional<Tensor> bias,
                                        std::vector<int64_t> dilations, int64_t window,
                                        double scale) {
  check_cuda_dtype(kOp, "qkv", qkv);
  return forward(qkv, bias, dilations, window, scale, [&](const AtrousAttentionParams& p) {
    launch_on_device_of(kOp, qkv,
                        [&](void* stream) { return hk_atrous_attention_forward(&p, stream); });
  });
}

std::tuple<Tensor, Tensor> backward_cuda(Tensor grad_out, Tensor qkv, std::optional<Tensor> bias,
                                         Tensor out, Tensor lse, std::vector<int64_t> dilations,
                                         int64_t window, double scale, bool need_qkv,
                                         bool need_bias) {
  check_cuda_dtype(kOp, "qkv", qkv);
  return backward(
      grad_out, qkv, bias, out, lse, dilations, window, scale, need_qkv, need_bias,
      [](const AtrousAttentionParams& p) { return hk_atrous_attention_workspace_bytes(&p); },
      [&](const AtrousAttentionParams& p) {
        launch_on_device_of(kOp, qkv,
                            [&](void* stream) { return hk_atrous_attention_backward(&p, stream); });
      });
}

#endif

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "atrous_attention(Tensor qkv, Tensor? bias, int[] dilations, int window, float scale)"
      " -> (Tensor out, Tensor lse)");
  m.def(
      "atrous_attention_backward(Tensor grad_out, Tensor qkv, Tensor? bias, Tensor out, Tensor lse,"
      " int[] dilations, int window, float scale, bool need_qkv, bool need_bias)"
      " -> (Tensor grad_qkv, Tensor grad_bias)");
}

#if !defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("atrous_attention", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("atrous_attention_backward", TORCH_BOX(&hybrid::backward_cpu));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("atrous_attention", TORCH_BOX(&hybrid::forward_cuda));
  m.impl("atrous_attention_backward", TORCH_BOX(&hybrid::backward_cuda));
}
#endif
