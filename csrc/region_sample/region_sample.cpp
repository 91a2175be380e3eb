// hybrid::region_sample: schema, argument checks, tensors -> parameter struct, registration.
#include "region_sample.h"

#include <tuple>

#include "../common/stencil/cuda_tensors.h"

namespace hybrid {
namespace {

constexpr const char* kOp = "region_sample";

RegionSampleParams checked_params(const Tensor& x, const Tensor& weight) {
  check_map(kOp, "x", x);
  RegionSampleParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  p.region = weight.dim() > 0 ? weight.size(0) : 0;
  check(p.region >= 1 && p.region <= INT32_MAX, kOp, ": weight has shape ", shape_text(weight),
        "; expected (r, r, C) with r >= 1");
  check_parameter(kOp, "weight", weight, {p.region, p.region, p.C}, "(r, r, C)", x);
  p.rows = ceil_div(p.H, p.region);
  p.columns = ceil_div(p.W, p.region);
  return p;
}

// launch(parameters) for a map that is not empty
template <class Launch>
Tensor forward(const Tensor& x, const Tensor& weight, const Parameter& bias, const Launch& launch) {
  RegionSampleParams p = checked_params(x, weight);
  if (bias) check_parameter(kOp, "bias", *bias, {p.C}, "(C,)", x);
  const Tensor s = empty_like_type(x, {p.B, p.rows, p.columns, p.C}, x.scalar_type());
  if (is_empty(s)) return s;
  Inputs inputs;
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  p.bias = inputs.parameter(bias);
  p.s = output_map(s);
  launch(p);
  return s;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

struct BackwardArguments {
  const Tensor &grad, &x, &weight;
  const Parameter& dx_init;
  bool need_x, need_weight, need_bias;
};

RegionSampleParams checked_params(const BackwardArguments& a) {
  const RegionSampleParams p = checked_params(a.x, a.weight);
  check_shape(kOp, "grad", a.grad, {p.B, p.rows, p.columns, p.C},
              "(B, ceil(H / r), ceil(W / r), C)");
  check_dtype(kOp, "grad", a.grad, a.x.scalar_type());
  check_same_device(kOp, "grad", a.grad, "x", a.x);
  if (a.dx_init) check_like(kOp, "dx_init", *a.dx_init, a.x);
  check(!a.dx_init || a.need_x, kOp, "_backward: dx_init is given but need_x is false");
  return p;
}

// workspace_bytes(parameters), launch(parameters)
template <class Bytes, class Launch>
Gradients backward(const BackwardArguments& a, const Bytes& bytes, const Launch& launch) {
  RegionSampleParams p = checked_params(a);
  const Tensor grad_x = new_map_gradient(a.x, a.need_x);
  Tensor grad_weight = new_parameter_gradient(a.x, a.need_weight, {p.region, p.region, p.C});
  Tensor grad_bias = new_parameter_gradient(a.x, a.need_bias, {p.C});
  if (is_empty(a.x)) {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  } else if (a.need_x || a.need_weight || a.need_bias) {
    Inputs inputs;
    p.x = inputs.map(a.x);
    p.weight = inputs.parameter(a.weight);
    p.grad = inputs.map(a.grad);
    if (a.dx_init) p.dx_init = inputs.map(*a.dx_init);
    if (a.need_x) p.grad_x = output_map(grad_x);
    if (a.need_weight) p.grad_weight = grad_weight.mutable_data_ptr();
    if (a.need_bias) p.grad_bias = grad_bias.mutable_data_ptr();
    const Tensor workspace = new_workspace(a.x, bytes(p), p.workspace);
    launch(p);
  }
  return {grad_x, grad_weight, grad_bias};
}

#if !defined(HYBRID_HOST_EMULATOR)

Tensor forward_cpu(Tensor x, Tensor weight, Parameter bias) {
  return forward(x, weight, bias, [](const RegionSampleParams& p) {
    const RegionSampleCpu& kernels = cpu_table<RegionSampleCpu>();
    torch::stable::parallel_for(0, kernels.forward_jobs(p), 1, [&](int64_t begin, int64_t end) {
      kernels.forward(p, begin, end);
    });
  });
}

Gradients backward_cpu(Tensor grad, Tensor x, Tensor weight, Parameter dx_init, bool need_x,
                       bool need_weight, bool need_bias) {
  const RegionSampleCpu& kernels = cpu_table<RegionSampleCpu>();
  return backward({grad, x, weight, dx_init, need_x, need_weight, need_bias},
                  kernels.workspace_bytes, [&](const RegionSampleParams& p) {
                    torch::stable::parallel_for(
                        0, kernels.backward_jobs(p), 1,
                        [&](int64_t begin, int64_t end) { kernels.backward(p, begin, end); });
                    kernels.reduce(p);
                  });
}

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

Tensor forward_cuda(Tensor x, Tensor weight, Parameter bias) {
  check_cuda_map(kOp, x);
  return forward(x, weight, bias, [&](const RegionSampleParams& p) {
    launch_on_device_of(kOp, x, [&](void* stream) { return hk_region_sample_forward(&p, stream); });
  });
}

Gradients backward_cuda(Tensor grad, Tensor x, Tensor weight, Parameter dx_init, bool need_x,
                        bool need_weight, bool need_bias) {
  check_cuda_map(kOp, x);
  return backward(
      {grad, x, weight, dx_init, need_x, need_weight, need_bias},
      [](const RegionSampleParams& p) { return hk_region_sample_workspace_bytes(&p); },
      [&](const RegionSampleParams& p) {
        launch_on_device_of(kOp, x,
                            [&](void* stream) { return hk_region_sample_backward(&p, stream); });
      });
}

#endif

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("region_sample(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "region_sample_backward(Tensor grad, Tensor x, Tensor weight, Tensor? dx_init, bool need_x,"
      " bool need_weight, bool need_bias) -> (Tensor grad_x, Tensor grad_weight,"
      " Tensor grad_bias)");
}

#if !defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("region_sample", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("region_sample_backward", TORCH_BOX(&hybrid::backward_cpu));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("region_sample", TORCH_BOX(&hybrid::forward_cuda));
  m.impl("region_sample_backward", TORCH_BOX(&hybrid::backward_cuda));
}
#endif
