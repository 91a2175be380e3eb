// hybrid::atrous_dwconv: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "atrous_dwconv.h"

#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("atrous_dwconv(Tensor x, Tensor weight, int[] dilations, int stride) -> Tensor[]");
  m.def(
      "atrous_dwconv_backward(Tensor[] grads, Tensor x, Tensor weight, int[] dilations, int stride,"
      " bool need_x, bool need_weight) -> (Tensor grad_x, Tensor grad_weight)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "atrous_dwconv";

AtrousDwconvParams checked_params(const Tensor& x, const Tensor& weight,
                                  const std::vector<int64_t>& dilations, int64_t stride) {
  check_map(kOp, "x", x);
  AtrousDwconvParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  const int64_t n = static_cast<int64_t>(dilations.size());
  check(n >= 1 && n <= kMaxBranches, kOp, ": dilations = ", tuple_text(dilations),
        "; expected 1 to ", kMaxBranches, " of them");
  p.n = static_cast<int32_t>(n);
  for (int64_t k = 0; k < n; ++k) {
    check(dilations[k] >= 1 && dilations[k] <= kMaxDilation, kOp,
          ": dilations = ", tuple_text(dilations), "; expected each from 1 to ", kMaxDilation);
    p.dilation[k] = dilations[k];
  }
  check(stride == 1 || stride == 2, kOp, ": stride = ", stride, "; expected 1 or 2");
  p.stride = stride;
  p.out_H = ceil_div(p.H, stride);
  p.out_W = ceil_div(p.W, stride);
  check_parameter(kOp, "weight", weight, {n, p.C, 3, 3}, "(branches, C, 3, 3)", x);
  return p;
}

std::vector<Tensor> forward_cpu(Tensor x, Tensor weight, std::vector<int64_t> dilations,
                                int64_t stride) {
  AtrousDwconvParams p = checked_params(x, weight, dilations, stride);
  std::vector<Tensor> maps;
  for (int k = 0; k < p.n; ++k) {
    maps.push_back(empty_like_type(x, {p.B, p.out_H, p.out_W, p.C}, x.scalar_type()));
    p.y[k] = output_map(maps.back());
  }
  if (is_empty(x)) return maps;
  Inputs inputs;
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  run_forward<AtrousDwconvCpu>(p);
  return maps;
}

std::tuple<Tensor, Tensor> backward_cpu(std::vector<Tensor> grads, Tensor x, Tensor weight,
                                        std::vector<int64_t> dilations, int64_t stride, bool need_x,
                                        bool need_weight) {
  AtrousDwconvParams p = checked_params(x, weight, dilations, stride);
  check(grads.size() == dilations.size(), kOp, "_backward: grads has ", grads.size(),
        " entries; expected one for each of the ", p.n, " branches");
  Inputs inputs;
  for (int k = 0; k < p.n; ++k) {
    const std::string name = "grads[" + std::to_string(k) + "]";
    check_shape(kOp, name.c_str(), grads[k], {p.B, p.out_H, p.out_W, p.C}, "(B, H', W', C)");
    check_dtype(kOp, name.c_str(), grads[k], x.scalar_type());
    check_same_device(kOp, name.c_str(), grads[k], "x", x);
    p.grad[k] = inputs.map(grads[k]);
  }
  const Tensor grad_x = new_map_gradient(x, need_x);
  Tensor grad_weight = new_parameter_gradient(x, need_weight, {p.n, p.C, 3, 3});
  if (is_empty(x)) return {grad_x, torch::stable::zero_(grad_weight)};
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  if (need_x) p.grad_x = output_map(grad_x);
  if (need_weight) p.grad_weight = grad_weight.mutable_data_ptr();
  run_backward<AtrousDwconvCpu>(p, x);
  return {grad_x, grad_weight};
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("atrous_dwconv", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("atrous_dwconv_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
