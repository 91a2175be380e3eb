// hybrid::dwconv_act: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "dwconv_act.h"

#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("dwconv_act(Tensor x, Tensor weight, Tensor? bias, str act) -> Tensor");
  m.def(
      "dwconv_act_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, str act, bool "
      "need_x,"
      " bool need_weight, bool need_bias) -> (Tensor grad_x, Tensor grad_weight, Tensor "
      "grad_bias)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "dwconv_act";

DwconvActParams checked_params(const Tensor& x, const Tensor& weight, const Parameter& bias,
                               const std::string& act) {
  check_map(kOp, "x", x);
  DwconvActParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  p.act = activation_of(kOp, act);
  check_parameter(kOp, "weight", weight, {3, 3, p.C}, "(3, 3, C)", x);
  if (bias) check_parameter(kOp, "bias", *bias, {p.C}, "(C,)", x);
  return p;
}

Tensor forward_cpu(Tensor x, Tensor weight, Parameter bias, std::string act) {
  DwconvActParams p = checked_params(x, weight, bias, act);
  const Tensor y = empty_like_type(x, {p.B, p.H, p.W, p.C}, x.scalar_type());
  if (is_empty(y)) return y;
  Inputs inputs;
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  p.bias = inputs.parameter(bias);
  p.y = output_map(y);
  run_forward<DwconvActCpu>(p);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(Tensor grad, Tensor x, Tensor weight,
                                                Parameter bias, std::string act, bool need_x,
                                                bool need_weight, bool need_bias) {
  DwconvActParams p = checked_params(x, weight, bias, act);
  check_like(kOp, "grad", grad, x);
  check(!need_bias || bias, kOp, "_backward: need_bias is true but bias is None");
  const Tensor grad_x = new_map_gradient(x, need_x);
  const Tensor grad_weight = new_parameter_gradient(x, need_weight, {3, 3, p.C});
  const Tensor grad_bias = new_parameter_gradient(x, need_bias, {p.C});
  std::tuple<Tensor, Tensor, Tensor> gradients{grad_x, grad_weight, grad_bias};
  if (is_empty(x)) {
    zero_all(gradients);
    return gradients;
  }
  Inputs inputs;
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  p.bias = inputs.parameter(bias);
  p.grad = inputs.map(grad);
  if (need_x) p.grad_x = output_map(grad_x);
  if (need_weight) p.grad_weight = grad_weight.mutable_data_ptr();
  if (need_bias) p.grad_bias = grad_bias.mutable_data_ptr();
  run_backward<DwconvActCpu>(p, x);
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("dwconv_act", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("dwconv_act_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
