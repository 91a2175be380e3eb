// hybrid::bilinear_sample: schema, argument checks, tensors -> parameter struct, CPU registration.
// On CUDA tensors the op is served by Triton.
#include "bilinear_sample.h"

#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("bilinear_sample(Tensor x, Tensor offset) -> Tensor");
  m.def(
      "bilinear_sample_backward(Tensor grad, Tensor x, Tensor offset, bool need_x,"
      " bool need_offset) -> (Tensor grad_x, Tensor grad_offset)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "bilinear_sample";

BilinearSampleParams checked_params(const Tensor& x, const Tensor& offset) {
  check_map(kOp, "x", x);
  BilinearSampleParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  p.out_H = ceil_div(p.H, int64_t{2});
  p.out_W = ceil_div(p.W, int64_t{2});
  check_parameter(kOp, "offset", offset, {p.B, p.out_H, p.out_W, 2},
                  "(B, ceil(H / 2), ceil(W / 2), 2)", x);
  return p;
}

Tensor forward_cpu(Tensor x, Tensor offset) {
  BilinearSampleParams p = checked_params(x, offset);
  const Tensor y = empty_like_type(x, {p.B, p.out_H, p.out_W, p.C}, x.scalar_type());
  if (is_empty(y)) return y;
  Inputs inputs;
  p.x = inputs.map(x);
  p.offset = inputs.parameter(offset);
  p.y = output_map(y);
  const BilinearSampleCpu& kernels = cpu_table<BilinearSampleCpu>();
  torch::stable::parallel_for(0, p.B * p.out_H, 1,
                              [&](int64_t begin, int64_t end) { kernels.forward(p, begin, end); });
  return y;
}

std::tuple<Tensor, Tensor> backward_cpu(Tensor grad, Tensor x, Tensor offset, bool need_x,
                                        bool need_offset) {
  BilinearSampleParams p = checked_params(x, offset);
  check_shape(kOp, "grad", grad, {p.B, p.out_H, p.out_W, p.C}, "(B, H', W', C), as the output");
  check_dtype(kOp, "grad", grad, x.scalar_type());
  check_same_device(kOp, "grad", grad, "x", x);
  const Tensor grad_x = new_map_gradient(x, need_x);
  Tensor grad_offset = new_parameter_gradient(x, need_offset, shape_of(offset));
  if (is_empty(x)) return {grad_x, torch::stable::zero_(grad_offset)};
  Inputs inputs;
  p.x = inputs.map(x);
  p.offset = inputs.parameter(offset);
  p.grad = inputs.map(grad);
  const BilinearSampleCpu& kernels = cpu_table<BilinearSampleCpu>();
  if (need_offset) {
    p.grad_offset = grad_offset.mutable_data_ptr();
    torch::stable::parallel_for(0, p.B * p.out_H, 1, [&](int64_t begin, int64_t end) {
      kernels.backward_offset(p, begin, end);
    });
  }
  if (need_x) {
    p.grad_x = output_map(grad_x);
    torch::stable::parallel_for(0, kernels.blocks(p), 1, [&](int64_t begin, int64_t end) {
      kernels.backward_map(p, begin, end);
    });
  }
  return {grad_x, grad_offset};
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("bilinear_sample", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("bilinear_sample_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
