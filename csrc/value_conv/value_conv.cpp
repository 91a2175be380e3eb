// hybrid::value_conv: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "value_conv.h"

#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "value_conv(Tensor out, Tensor v, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift)"
      " -> Tensor");
  m.def(
      "value_conv_backward(Tensor grad, Tensor out, Tensor v, Tensor weight, Tensor bias,"
      " Tensor? scale, Tensor? shift, bool need_out, bool need_v, bool need_parameters,"
      " bool need_affine) -> (Tensor grad_out, Tensor grad_v, Tensor grad_weight,"
      " Tensor grad_bias, Tensor grad_scale, Tensor grad_shift)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char *kOp = "value_conv", *kOut = "out";

ValueConvParams checked_params(Inputs& inputs, const Tensor& out, const Tensor& v,
                               const Tensor& weight, const Tensor& bias, const Parameter& scale,
                               const Parameter& shift) {
  check_map(kOp, "out", out);
  ValueConvParams p{};
  p.dtype = dtype_of(kOp, "out", out);
  p.B = out.size(0);
  p.H = out.size(1);
  p.W = out.size(2);
  p.C = out.size(3);
  check_like(kOp, "v", v, out, kOut);
  check_parameter(kOp, "weight", weight, {3, 3, p.C}, "(3, 3, C)", out, kOut);
  check_parameter(kOp, "bias", bias, {p.C}, "(C,)", out, kOut);
  check_affine(kOp, scale, shift, p.C, out, kOut);
  p.out = inputs.map(out);
  p.v = inputs.map(v);
  p.weight = inputs.parameter(weight);
  p.bias = inputs.parameter(bias);
  p.scale = inputs.parameter(scale);
  p.shift = inputs.parameter(shift);
  return p;
}

Tensor forward_cpu(Tensor out, Tensor v, Tensor weight, Tensor bias, Parameter scale,
                   Parameter shift) {
  Inputs inputs;
  ValueConvParams p = checked_params(inputs, out, v, weight, bias, scale, shift);
  const Tensor y = empty_like_type(out, {p.B, p.H, p.W, p.C}, out.scalar_type());
  if (is_empty(y)) return y;
  p.y = output_map(y);
  run_forward<ValueConvCpu>(p);
  return y;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward_cpu(Tensor grad, Tensor out, Tensor v, Tensor weight, Tensor bias,
                       Parameter scale, Parameter shift, bool need_out, bool need_v,
                       bool need_parameters, bool need_affine) {
  Inputs inputs;
  ValueConvParams p = checked_params(inputs, out, v, weight, bias, scale, shift);
  check_like(kOp, "grad", grad, out, kOut);
  check(!need_affine || scale, kOp, "_backward: need_affine is true but scale is None");
  p.grad = inputs.map(grad);
  const auto sums = [&](bool needed, const std::vector<int64_t>& shape, void*& data) {
    return new_gradient(out, needed, shape, accumulate_type(out.scalar_type()), data);
  };
  Gradients gradients{new_map_gradient(out, need_out),
                      new_map_gradient(v, need_v),
                      sums(need_parameters, {3, 3, p.C}, p.grad_weight),
                      sums(need_parameters, {p.C}, p.grad_bias),
                      sums(need_affine, {p.C}, p.grad_scale),
                      sums(need_affine, {p.C}, p.grad_shift)};
  if (is_empty(out)) {
    zero_all(gradients);
    return gradients;
  }
  if (need_out) p.grad_out = output_map(std::get<0>(gradients));
  if (need_v) p.grad_v = output_map(std::get<1>(gradients));
  run_backward<ValueConvCpu>(p, out);
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("value_conv", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("value_conv_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
