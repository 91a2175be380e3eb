// hybrid::conv_attention_fused: schema, argument checks, tensors -> parameter struct, registration.
#include "conv_attention_fused.h"

#include <cmath>
#include <tuple>

#include "../common/stencil/cuda_tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "conv_attention_fused(Tensor x, Tensor dw_weight, Tensor logit_weight, Tensor? logit_bias,"
      " Tensor value_weight, int heads, float scale) -> Tensor");
  m.def(
      "conv_attention_fused_backward(Tensor grad_out, Tensor x, Tensor dw_weight,"
      " Tensor logit_weight, Tensor? logit_bias, Tensor value_weight, int heads, float scale,"
      " bool need_x, bool need_dw, bool need_logit, bool need_value) -> (Tensor grad_x,"
      " Tensor grad_dw, Tensor grad_logit, Tensor grad_bias, Tensor grad_value)");
}

namespace hybrid {
namespace {

constexpr const char* kOp = "conv_attention_fused";
constexpr int32_t kSide = 3, kPairs = kSide * kSide * kSide * kSide;

struct Arguments {
  const Tensor &x, &dw_weight, &logit_weight;
  const Parameter& logit_bias;
  const Tensor& value_weight;
  int64_t heads;
  double scale;
};

void check_weight(const char* name, const Tensor& t, const std::vector<int64_t>& shape,
                  const char* meaning, const Tensor& x) {
  check_shape(kOp, name, t, shape, meaning);
  check_dtype(kOp, name, t, x.scalar_type());
  check_same_device(kOp, name, t, "x", x);
}

ConvAttentionFusedParams checked_params(const Arguments& a) {
  const Tensor& x = a.x;
  check(x.dim() == 4 && x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, kOp, ": x has shape ",
        shape_text(x), "; expected (B, H, W, C) with H, W and C at least 1");
  ConvAttentionFusedParams p{};
  ConvAttentionParams& w = p.windows;
  w.dtype = dtype_of(kOp, "x", x);
  w.B = x.size(0);
  w.H = x.size(1);
  w.W = x.size(2);
  w.C = x.size(3);
  check(a.heads >= 1 && w.C % a.heads == 0, kOp, ": heads = ", a.heads,
        "; expected a divisor of the ", w.C, " channels of x");
  check(std::isfinite(a.scale), kOp, ": scale = ", a.scale, "; expected a finite number");
  w.kernel = kSide;
  w.stride = 2;
  w.padding = 1;
  w.H2 = ceil_div<int64_t>(w.H, 2);
  w.W2 = ceil_div<int64_t>(w.W, 2);
  w.h = static_cast<int32_t>(a.heads);
  w.d = static_cast<int32_t>(w.C / a.heads);
  w.scale = a.scale;
  const int64_t rows = kPairs * a.heads;
  check_weight("dw_weight", a.dw_weight, {kSide, kSide, w.C}, "(3, 3, C)", x);
  check_weight("logit_weight", a.logit_weight, {rows, w.C}, "(81 * heads, C)", x);
  if (a.logit_bias) check_weight("logit_bias", *a.logit_bias, {rows}, "(81 * heads,)", x);
  check_weight("value_weight", a.value_weight, {w.C, w.C}, "(C, C)", x);
  return p;
}

void add_inputs(ConvAttentionFusedParams& p, const Arguments& a, Inputs& inputs) {
  p.windows.v = inputs.map(a.x);
  p.dw_weight = inputs.parameter(a.dw_weight);
  p.logit_weight = inputs.parameter(a.logit_weight);
  p.logit_bias = inputs.parameter(a.logit_bias);
  p.value_weight = inputs.parameter(a.value_weight);
}

// launch(parameters), bytes(parameters) of workspace.
template <class Bytes, class Launch>
Tensor forward(const Arguments& a, const Bytes& bytes, const Launch& launch) {
  ConvAttentionFusedParams p = checked_params(a);
  Tensor y = empty_like_type(a.x, shape_of(a.x), a.x.scalar_type());
  if (is_empty(y)) return y;
  Inputs inputs;
  add_inputs(p, a, inputs);
  p.windows.y = y.mutable_data_ptr();
  const Tensor workspace = new_workspace(a.x, bytes(p), p.workspace);
  launch(p);
  return y;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Needs {
  bool x, dw, logit, value;
};

template <class Bytes, class Launch>
Gradients backward(const Tensor& grad_out, const Arguments& a, const Needs& need,
                   const Bytes& bytes, const Launch& launch) {
  ConvAttentionFusedParams p = checked_params(a);
  check_like(kOp, "grad_out", grad_out, a.x);
  const auto parameter_gradient = [&](const Tensor& parameter, bool needed, void*& data) {
    Tensor grad = new_parameter_gradient(a.x, needed, shape_of(parameter));
    if (needed) data = grad.mutable_data_ptr();
    if (needed && is_empty(a.x)) torch::stable::zero_(grad);
    return grad;
  };
  const bool need_bias = need.logit && a.logit_bias;
  const Tensor grad_x = new_gradient(a.x, need.x, p.windows.grad_v);
  const Tensor grad_dw = parameter_gradient(a.dw_weight, need.dw, p.grad_dw);
  const Tensor grad_logit = parameter_gradient(a.logit_weight, need.logit, p.grad_logit);
  const Tensor grad_bias =
      parameter_gradient(need_bias ? *a.logit_bias : a.x, need_bias, p.grad_bias);
  const Tensor grad_value = parameter_gradient(a.value_weight, need.value, p.grad_value);
  if (!is_empty(a.x) && (need.x || need.dw || need.logit || need.value)) {
    Inputs inputs;
    add_inputs(p, a, inputs);
    p.windows.grad_out = inputs.map(grad_out);
    const Tensor workspace = new_workspace(a.x, bytes(p), p.workspace);
    launch(p);
  }
  return {grad_x, grad_dw, grad_logit, grad_bias, grad_value};
}

#if !defined(HYBRID_HOST_EMULATOR)

void launch_cpu(const ConvAttentionFusedParams& p) {
  const auto& kernels = cpu_table<ConvAttentionFusedCpu>();
  torch::stable::parallel_for(0, kernels.chunks(p), 1,
                              [&](int64_t begin, int64_t end) { kernels.compute(p, begin, end); });
}

Tensor forward_cpu(Tensor x, Tensor dw_weight, Tensor logit_weight, Parameter logit_bias,
                   Tensor value_weight, int64_t heads, double scale) {
  return forward(
      {x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale},
      [](const ConvAttentionFusedParams&) { return int64_t{0}; }, launch_cpu);
}

Gradients backward_cpu(Tensor grad_out, Tensor x, Tensor dw_weight, Tensor logit_weight,
                       Parameter logit_bias, Tensor value_weight, int64_t heads, double scale,
                       bool need_x, bool need_dw, bool need_logit, bool need_value) {
  const auto& kernels = cpu_table<ConvAttentionFusedCpu>();
  return backward(grad_out, {x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale},
                  {need_x, need_dw, need_logit, need_value}, kernels.workspace_bytes,
                  [&](const ConvAttentionFusedParams& p) {
                    launch_cpu(p);
                    kernels.reduce(p);
                  });
}

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

int64_t cuda_workspace_bytes(const ConvAttentionFusedParams& p) {
  return hk_conv_attention_fused_workspace_bytes(&p);
}

Tensor forward_cuda(Tensor x, Tensor dw_weight, Tensor logit_weight, Parameter logit_bias,
                    Tensor value_weight, int64_t heads, double scale) {
  check_cuda_map(kOp, x);
  return forward({x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale},
                 cuda_workspace_bytes, [&](const ConvAttentionFusedParams& p) {
                   launch_on_device_of(kOp, x, [&](void* stream) {
                     return hk_conv_attention_fused_forward(&p, stream);
                   });
                 });
}

Gradients backward_cuda(Tensor grad_out, Tensor x, Tensor dw_weight, Tensor logit_weight,
                        Parameter logit_bias, Tensor value_weight, int64_t heads, double scale,
                        bool need_x, bool need_dw, bool need_logit, bool need_value) {
  check_cuda_map(kOp, x);
  return backward(grad_out, {x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale},
                  {need_x, need_dw, need_logit, need_value}, cuda_workspace_bytes,
                  [&](const ConvAttentionFusedParams& p) {
                    launch_on_device_of(kOp, x, [&](void* stream) {
                      return hk_conv_attention_fused_backward(&p, stream);
                    });
                  });
}

#endif

}  // namespace
}  // namespace hybrid

#if !defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("conv_attention_fused", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("conv_attention_fused_backward", TORCH_BOX(&hybrid::backward_cpu));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("conv_attention_fused", TORCH_BOX(&hybrid::forward_cuda));
  m.impl("conv_attention_fused_backward", TORCH_BOX(&hybrid::backward_cuda));
}
#endif
