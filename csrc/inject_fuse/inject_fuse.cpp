// hybrid::inject_fuse: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "inject_fuse.h"

#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("inject_fuse(Tensor local, Tensor logit, Tensor offset) -> Tensor");
  m.def(
      "inject_fuse_backward(Tensor grad, Tensor local, Tensor logit, Tensor offset,"
      " bool need_local, bool need_logit, bool need_offset)"
      " -> (Tensor grad_local, Tensor grad_logit, Tensor grad_offset)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "inject_fuse";

InjectFuseParams checked_params(Inputs& inputs, const Tensor& local, const Tensor& logit,
                                const Tensor& offset) {
  check_map(kOp, "local", local);
  check_map(kOp, "logit", logit);
  InjectFuseParams p{};
  p.dtype = dtype_of(kOp, "local", local);
  p.B = local.size(0);
  p.fine_H = local.size(1);
  p.fine_W = local.size(2);
  p.C = local.size(3);
  p.H = logit.size(1);
  p.W = logit.size(2);
  const Tensor* coarse[] = {&logit, &offset};
  const char* names[] = {"logit", "offset"};
  for (int k = 0; k < 2; ++k) {
    check_shape(kOp, names[k], *coarse[k], {p.B, p.H, p.W, p.C},
                "(B, H, W, C), B and C as local, H and W as logit");
    check_dtype(kOp, names[k], *coarse[k], local.scalar_type());
    check_same_device(kOp, names[k], *coarse[k], "local", local);
  }
  p.local = inputs.map(local);
  p.logit = inputs.map(logit);
  p.offset = inputs.map(offset);
  return p;
}

Tensor forward_cpu(Tensor local, Tensor logit, Tensor offset) {
  Inputs inputs;
  InjectFuseParams p = checked_params(inputs, local, logit, offset);
  const Tensor y = empty_like_type(local, shape_of(local), local.scalar_type());
  if (is_empty(y)) return y;
  p.y = output_map(y);
  const InjectFuseCpu& kernels = cpu_table<InjectFuseCpu>();
  torch::stable::parallel_for(0, kernels.forward_jobs(p), 1,
                              [&](int64_t begin, int64_t end) { kernels.forward(p, begin, end); });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(Tensor grad, Tensor local, Tensor logit,
                                                Tensor offset, bool need_local, bool need_logit,
                                                bool need_offset) {
  Inputs inputs;
  InjectFuseParams p = checked_params(inputs, local, logit, offset);
  check_shape(kOp, "grad", grad, shape_of(local), "(B, H, W, C), as local");
  check_dtype(kOp, "grad", grad, local.scalar_type());
  check_same_device(kOp, "grad", grad, "local", local);
  const auto gradient = [&](const Tensor& x, bool needed, OutputMap& map) {
    const Tensor t = new_map_gradient(x, needed);
    if (needed && !is_empty(t)) map = output_map(t);
    return t;
  };
  std::tuple<Tensor, Tensor, Tensor> gradients{gradient(local, need_local, p.grad_local),
                                               gradient(logit, need_logit, p.grad_logit),
                                               gradient(offset, need_offset, p.grad_offset)};
  if (is_empty(local)) return gradients;
  p.grad = inputs.map(grad);
  const InjectFuseCpu& kernels = cpu_table<InjectFuseCpu>();
  torch::stable::parallel_for(0, kernels.backward_jobs(p), 1,
                              [&](int64_t begin, int64_t end) { kernels.backward(p, begin, end); });
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("inject_fuse", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("inject_fuse_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
