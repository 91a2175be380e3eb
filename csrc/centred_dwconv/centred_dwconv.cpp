// hybrid::centred_dwconv: schema, argument checks, tensors -> parameter struct, CPU registration.
// On CUDA tensors the op is served by Triton.
#include "centred_dwconv.h"

#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("centred_dwconv(Tensor x, Tensor weight) -> (Tensor y, Tensor mean)");
  m.def(
      "centred_dwconv_backward(Tensor grad, Tensor x, Tensor weight, Tensor mean, bool need_x,"
      " bool need_weight) -> (Tensor grad_x, Tensor grad_weight)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "centred_dwconv";

using Jobs = void (*)(const CentredDwconvParams&, int64_t begin, int64_t end);

CentredDwconvParams checked_params(const Tensor& x, const Tensor& weight) {
  check_map(kOp, "x", x);
  CentredDwconvParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  check(p.C > 0, kOp, ": x has shape ", shape_text(x), "; expected at least one channel");
  check_parameter(kOp, "weight", weight, {3, 3, p.C}, "(3, 3, C)", x);
  return p;
}

void run(const CentredDwconvParams& p, Jobs jobs) {
  const int64_t count = cpu_table<CentredDwconvCpu>().jobs(p);
  torch::stable::parallel_for(0, count, 1,
                              [&](int64_t begin, int64_t end) { jobs(p, begin, end); });
}

std::tuple<Tensor, Tensor> forward_cpu(Tensor x, Tensor weight) {
  CentredDwconvParams p = checked_params(x, weight);
  const Tensor y = empty_like_type(x, {p.B, p.H, p.W, p.C}, x.scalar_type());
  const Tensor mean = empty_like_type(x, {p.B, p.C}, accumulate_type(x.scalar_type()));
  if (is_empty(y)) return {y, mean};
  Inputs inputs;
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  p.y = output_map(y);
  p.mean = mean.mutable_data_ptr();
  const CentredDwconvCpu& kernels = cpu_table<CentredDwconvCpu>();
  const Tensor workspace = new_workspace(x, kernels.workspace_bytes(p), p.workspace);
  run(p, kernels.forward_start);
  run(p, kernels.forward_finish);
  return {y, mean};
}

std::tuple<Tensor, Tensor> backward_cpu(Tensor grad, Tensor x, Tensor weight, Tensor mean,
                                        bool need_x, bool need_weight) {
  CentredDwconvParams p = checked_params(x, weight);
  check_like(kOp, "grad", grad, x);
  check_parameter(kOp, "mean", mean, {p.B, p.C}, "(B, C)", x);
  std::tuple<Tensor, Tensor> gradients{new_map_gradient(x, need_x),
                                       new_parameter_gradient(x, need_weight, {3, 3, p.C})};
  const auto& [grad_x, grad_weight] = gradients;
  if (is_empty(x)) {
    zero_all(gradients);
    return gradients;
  }
  Inputs inputs;
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  p.mean = const_cast<void*>(inputs.parameter(mean));  // the backward reads it
  p.grad = inputs.map(grad);
  if (need_x) p.grad_x = output_map(grad_x);
  if (need_weight) p.grad_weight = grad_weight.mutable_data_ptr();
  const CentredDwconvCpu& kernels = cpu_table<CentredDwconvCpu>();
  const Tensor workspace = new_workspace(x, kernels.workspace_bytes(p), p.workspace);
  run(p, kernels.backward_start);
  run(p, kernels.backward_finish);
  kernels.reduce(p);
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("centred_dwconv", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("centred_dwconv_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
