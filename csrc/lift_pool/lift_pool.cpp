// hybrid::lift_pool: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "lift_pool.h"

#include <tuple>

#include "../common/stencil/tensors.h"
#include "../dwconv_act/dwconv_act.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("lift_pool(Tensor x, Tensor weight, str group, str reduce) -> Tensor");
  m.def(
      "lift_pool_backward(Tensor grad, Tensor x, Tensor weight, str group, str reduce,"
      " bool need_x, bool need_weight) -> (Tensor grad_x, Tensor grad_weight)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "lift_pool";

LiftPoolParams checked_params(Inputs& inputs, const Tensor& x, const Tensor& weight,
                              const std::string& group, const std::string& reduce) {
  check_map(kOp, "x", x);
  LiftPoolParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  check_parameter(kOp, "weight", weight, {3, 3, p.C}, "(3, 3, C)", x);
  check(group == "p4" || group == "p4m", kOp, ": group = '", group, "'; expected p4 or p4m");
  check(reduce == "max" || reduce == "mean", kOp, ": reduce = '", reduce,
        "'; expected max or mean");
  p.mirrors = group == "p4m";
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  return p;
}

// The mean of a kernel's orientations, the same for both groups: corners trade places with corners,
// edges with edges. Its own adjoint. `mean` may be `kernel`.
template <class Scalar>
void average_orientations(const Scalar* kernel, int64_t C, Scalar* mean) {
  constexpr int kCorners[] = {0, 2, 6, 8}, kEdges[] = {1, 3, 5, 7}, kCentre = 4;
  for (int64_t c = 0; c < C; ++c) {
    for (const auto& taps : {kCorners, kEdges}) {
      Scalar sum = 0;
      for (int i = 0; i < 4; ++i) sum += kernel[taps[i] * C + c];
      for (int i = 0; i < 4; ++i) mean[taps[i] * C + c] = sum / 4;
    }
    mean[kCentre * C + c] = kernel[kCentre * C + c];
  }
}

void average_orientations(DType dtype, const void* kernel, int64_t C, void* mean) {
  if (dtype == DType::f64)
    average_orientations(static_cast<const double*>(kernel), C, static_cast<double*>(mean));
  else
    average_orientations(static_cast<const float*>(kernel), C, static_cast<float*>(mean));
}

Tensor mean_kernel(const LiftPoolParams& p, const Tensor& x) {
  const Tensor mean = new_parameter_gradient(x, true, {3, 3, p.C});
  average_orientations(p.dtype, p.weight, p.C, mean.mutable_data_ptr());
  return mean;
}

// The same maps under one kernel (3, 3, C) alone, for reduce = "mean".
DwconvActParams as_plain(const LiftPoolParams& p, const Tensor& kernel) {
  DwconvActParams plain{};
  plain.dtype = p.dtype;
  plain.B = p.B;
  plain.H = p.H;
  plain.W = p.W;
  plain.C = p.C;
  plain.act = Activation::none;
  plain.x = p.x;
  plain.weight = kernel.const_data_ptr();
  plain.y = p.y;
  plain.grad = p.grad;
  plain.grad_x = p.grad_x;
  plain.grad_weight = p.grad_weight;
  return plain;
}

Tensor forward_cpu(Tensor x, Tensor weight, std::string group, std::string reduce) {
  Inputs inputs;
  LiftPoolParams p = checked_params(inputs, x, weight, group, reduce);
  const Tensor y = empty_like_type(x, shape_of(x), x.scalar_type());
  if (is_empty(y)) return y;
  p.y = output_map(y);
  if (reduce == "max") {
    run_forward<LiftPoolCpu>(p);
    return y;
  }
  const Tensor mean = mean_kernel(p, x);
  run_forward<DwconvActCpu>(as_plain(p, mean));
  return y;
}

std::tuple<Tensor, Tensor> backward_cpu(Tensor grad, Tensor x, Tensor weight, std::string group,
                                        std::string reduce, bool need_x, bool need_weight) {
  Inputs inputs;
  LiftPoolParams p = checked_params(inputs, x, weight, group, reduce);
  check_like(kOp, "grad", grad, x);
  std::tuple<Tensor, Tensor> gradients{new_map_gradient(x, need_x),
                                       new_parameter_gradient(x, need_weight, {3, 3, p.C})};
  if (is_empty(x)) {
    zero_all(gradients);
    return gradients;
  }
  p.grad = inputs.map(grad);
  if (need_x) p.grad_x = output_map(std::get<0>(gradients));
  if (need_weight) p.grad_weight = std::get<1>(gradients).mutable_data_ptr();
  if (reduce == "max") {
    run_backward<LiftPoolCpu>(p, x);
    return gradients;
  }
  const Tensor mean = mean_kernel(p, x);
  DwconvActParams plain = as_plain(p, mean);
  run_backward<DwconvActCpu>(plain, x);
  if (need_weight) average_orientations(p.dtype, p.grad_weight, p.C, p.grad_weight);
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("lift_pool", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("lift_pool_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
