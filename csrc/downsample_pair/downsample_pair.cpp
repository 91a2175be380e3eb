// hybrid::downsample_pair: schema, argument checks, tensors -> parameter struct, CPU registration.
// On CUDA tensors the op is served by Triton.
#include "downsample_pair.h"

#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "downsample_pair(Tensor x, Tensor weight3, Tensor weight5, Tensor? scale, Tensor? shift)"
      " -> (Tensor x1, Tensor x2)");
  m.def(
      "downsample_pair_backward(Tensor grad1, Tensor grad2, Tensor x, Tensor weight3,"
      " Tensor weight5, Tensor? scale, Tensor? shift, bool need_x, bool need_weights,"
      " bool need_affine) -> (Tensor grad_x, Tensor grad_weight3, Tensor grad_weight5,"
      " Tensor grad_scale, Tensor grad_shift)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "downsample_pair";

DownsamplePairParams checked_params(Inputs& inputs, const Tensor& x, const Tensor& weight3,
                                    const Tensor& weight5, const Parameter& scale,
                                    const Parameter& shift) {
  check_map(kOp, "x", x);
  DownsamplePairParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  check_parameter(kOp, "weight3", weight3, {3, 3, p.C}, "(3, 3, C)", x);
  check_parameter(kOp, "weight5", weight5, {5, 5, p.C}, "(5, 5, C)", x);
  check_affine(kOp, scale, shift, p.C, x);
  p.x = inputs.map(x);
  p.weight[0] = inputs.parameter(weight3);
  p.weight[1] = inputs.parameter(weight5);
  p.scale = inputs.parameter(scale);
  p.shift = inputs.parameter(shift);
  return p;
}

std::tuple<Tensor, Tensor> forward_cpu(Tensor x, Tensor weight3, Tensor weight5, Parameter scale,
                                       Parameter shift) {
  Inputs inputs;
  DownsamplePairParams p = checked_params(inputs, x, weight3, weight5, scale, shift);
  const auto output = [&](int k) {
    const Tensor y = empty_like_type(x, {p.B, p.rows(k), p.columns(k), p.C}, x.scalar_type());
    p.y[k] = output_map(y);
    return y;
  };
  std::tuple<Tensor, Tensor> maps{output(0), output(1)};
  if (is_empty(x)) return maps;
  run_forward<DownsamplePairCpu>(p);
  return maps;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward_cpu(Tensor grad1, Tensor grad2, Tensor x, Tensor weight3, Tensor weight5,
                       Parameter scale, Parameter shift, bool need_x, bool need_weights,
                       bool need_affine) {
  Inputs inputs;
  DownsamplePairParams p = checked_params(inputs, x, weight3, weight5, scale, shift);
  check(!need_affine || scale, kOp, "_backward: need_affine is true but scale is None");
  const Tensor* grads[kScales] = {&grad1, &grad2};
  const char* names[kScales] = {"grad1", "grad2"};
  for (int k = 0; k < kScales; ++k) {
    check_shape(kOp, names[k], *grads[k], {p.B, p.rows(k), p.columns(k), p.C}, "(B, H', W', C)");
    check_dtype(kOp, names[k], *grads[k], x.scalar_type());
    check_same_device(kOp, names[k], *grads[k], "x", x);
    p.grad[k] = inputs.map(*grads[k]);
  }
  const auto sums = [&](bool needed, const std::vector<int64_t>& shape, void*& data) {
    return new_gradient(x, needed, shape, accumulate_type(x.scalar_type()), data);
  };
  Gradients gradients{
      new_map_gradient(x, need_x), sums(need_weights, {3, 3, p.C}, p.grad_weight[0]),
      sums(need_weights, {5, 5, p.C}, p.grad_weight[1]), sums(need_affine, {p.C}, p.grad_scale),
      sums(need_affine, {p.C}, p.grad_shift)};
  if (is_empty(x)) {
    zero_all(gradients);
    return gradients;
  }
  if (need_x) p.grad_x = output_map(std::get<0>(gradients));
  run_backward<DownsamplePairCpu>(p, x);
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("downsample_pair", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("downsample_pair_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
