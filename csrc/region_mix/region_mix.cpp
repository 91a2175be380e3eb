// hybrid::region_mix: schema, argument checks, tensors -> parameter struct, registration.
#include "region_mix.h"

#include <tuple>

#include "../common/stencil/cuda_tensors.h"

namespace hybrid {
namespace {

constexpr const char* kOp = "region_mix";

struct Arguments {
  const Tensor &x, &g, &weight;
  int64_t region;
};

RegionMixParams checked_params(const Arguments& a) {
  check_map(kOp, "x", a.x);
  RegionMixParams p{};
  p.dtype = dtype_of(kOp, "x", a.x);
  p.B = a.x.size(0);
  p.H = a.x.size(1);
  p.W = a.x.size(2);
  p.C = a.x.size(3);
  check(a.region >= 1 && a.region <= INT32_MAX, kOp, ": region = ", a.region, "; expected >= 1");
  p.region = a.region;
  p.rows = ceil_div(p.H, p.region);
  p.columns = ceil_div(p.W, p.region);
  check_shape(kOp, "g", a.g, {p.B, p.rows, p.columns, p.C},
              "(B, ceil(H / region), ceil(W / region), C)");
  check_dtype(kOp, "g", a.g, a.x.scalar_type());
  check_same_device(kOp, "g", a.g, "x", a.x);
  const int64_t side = a.weight.dim() > 0 ? a.weight.size(0) : 0;
  check(side == 1 || side == 3 || side == 5 || side == 7, kOp, ": weight has shape ",
        shape_text(a.weight), "; expected (k, k, C) with k = 1, 3, 5 or 7");
  p.side = static_cast<int32_t>(side);
  check_parameter(kOp, "weight", a.weight, {side, side, p.C}, "(k, k, C)", a.x);
  return p;
}

// launch(parameters) for a map that is not empty
template <class Launch>
Tensor forward(const Arguments& a, const Parameter& bias, const Launch& launch) {
  RegionMixParams p = checked_params(a);
  if (bias) check_parameter(kOp, "bias", *bias, {p.C}, "(C,)", a.x);
  const Tensor y = new_map_gradient(a.x, true);
  if (is_empty(y)) return y;
  Inputs inputs;
  p.x = inputs.map(a.x);
  p.g = inputs.map(a.g);
  p.weight = inputs.parameter(a.weight);
  p.bias = inputs.parameter(bias);
  p.y = output_map(y);
  launch(p);
  return y;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct Needs {
  bool x, g, weight, bias;
};

// launch(parameters), workspace_bytes(parameters)
template <class Bytes, class Launch>
Gradients backward(const Tensor& grad, const Arguments& a, const Needs& need, const Bytes& bytes,
                   const Launch& launch) {
  RegionMixParams p = checked_params(a);
  check_like(kOp, "grad", grad, a.x);
  const Tensor grad_x = new_map_gradient(a.x, need.x), grad_g = new_map_gradient(a.g, need.g);
  Tensor grad_weight = new_parameter_gradient(a.x, need.weight, {p.side, p.side, p.C});
  Tensor grad_bias = new_parameter_gradient(a.x, need.bias, {p.C});
  if (is_empty(a.x)) {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  } else if (need.x || need.g || need.weight || need.bias) {
    Inputs inputs;
    p.x = inputs.map(a.x);
    p.g = inputs.map(a.g);
    p.weight = inputs.parameter(a.weight);
    p.grad = inputs.map(grad);
    if (need.x) p.grad_x = output_map(grad_x);
    if (need.g) p.grad_g = output_map(grad_g);
    if (need.weight) p.grad_weight = grad_weight.mutable_data_ptr();
    if (need.bias) p.grad_bias = grad_bias.mutable_data_ptr();
    const Tensor workspace = new_workspace(a.x, bytes(p), p.workspace);
    launch(p);
  }
  return {grad_x, grad_g, grad_weight, grad_bias};
}

#if !defined(HYBRID_HOST_EMULATOR)

Tensor forward_cpu(Tensor x, Tensor g, Tensor weight, int64_t region, Parameter bias) {
  return forward({x, g, weight, region}, bias, [](const RegionMixParams& p) {
    const RegionMixCpu& kernels = cpu_table<RegionMixCpu>();
    torch::stable::parallel_for(0, kernels.forward_jobs(p), 1, [&](int64_t begin, int64_t end) {
      kernels.forward(p, begin, end);
    });
  });
}

Gradients backward_cpu(Tensor grad, Tensor x, Tensor g, Tensor weight, int64_t region, bool need_x,
                       bool need_g, bool need_weight, bool need_bias) {
  const RegionMixCpu& kernels = cpu_table<RegionMixCpu>();
  return backward(grad, {x, g, weight, region}, {need_x, need_g, need_weight, need_bias},
                  kernels.workspace_bytes, [&](const RegionMixParams& p) {
                    torch::stable::parallel_for(
                        0, kernels.backward_jobs(p), 1,
                        [&](int64_t begin, int64_t end) { kernels.backward(p, begin, end); });
                    kernels.reduce(p);
                  });
}

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

Tensor forward_cuda(Tensor x, Tensor g, Tensor weight, int64_t region, Parameter bias) {
  check_cuda_map(kOp, x);
  return forward({x, g, weight, region}, bias, [&](const RegionMixParams& p) {
    launch_on_device_of(kOp, x, [&](void* stream) { return hk_region_mix_forward(&p, stream); });
  });
}

Gradients backward_cuda(Tensor grad, Tensor x, Tensor g, Tensor weight, int64_t region, bool need_x,
                        bool need_g, bool need_weight, bool need_bias) {
  check_cuda_map(kOp, x);
  return backward(
      grad, {x, g, weight, region}, {need_x, need_g, need_weight, need_bias},
      [](const RegionMixParams& p) { return hk_region_mix_workspace_bytes(&p); },
      [&](const RegionMixParams& p) {
        launch_on_device_of(kOp, x,
                            [&](void* stream) { return hk_region_mix_backward(&p, stream); });
      });
}

#endif

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("region_mix(Tensor x, Tensor g, Tensor weight, int region, Tensor? bias) -> Tensor");
  m.def(
      "region_mix_backward(Tensor grad, Tensor x, Tensor g, Tensor weight, int region, bool need_x,"
      " bool need_g, bool need_weight, bool need_bias) -> (Tensor grad_x, Tensor grad_g,"
      " Tensor grad_weight, Tensor grad_bias)");
}

#if !defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("region_mix", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("region_mix_backward", TORCH_BOX(&hybrid::backward_cpu));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("region_mix", TORCH_BOX(&hybrid::forward_cuda));
  m.impl("region_mix_backward", TORCH_BOX(&hybrid::backward_cuda));
}
#endif
