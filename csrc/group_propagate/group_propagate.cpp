// hybrid::group_propagate: schema, argument checks, tensors -> parameter struct, CPU registration.
// On CUDA tensors the op is served by Triton.
#include "group_propagate.h"

#include <cmath>
#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "group_propagate(Tensor x, Tensor w3, Tensor b3, Tensor w5, Tensor b5, Tensor kv3,"
      " Tensor kv5, float scale) -> Tensor");
  m.def(
      "group_propagate_backward(Tensor grad, Tensor x, Tensor w3, Tensor b3, Tensor w5, Tensor b5,"
      " Tensor kv3, Tensor kv5, float scale, bool need_x, bool need_conv, bool need_kv)"
      " -> (Tensor grad_x, Tensor grad_w3, Tensor grad_b3, Tensor grad_w5, Tensor grad_b5,"
      " Tensor grad_kv3, Tensor grad_kv5)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "group_propagate";

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Taps, bias and tokens of one branch.
struct BranchTensors {
  int64_t side;
  const char *weight_name, *bias_name, *kv_name;
  const Tensor &weight, &bias, &kv;
};

void check_branch(const GroupPropagateParams& p, const BranchTensors& t, const Tensor& x) {
  check_parameter(kOp, t.weight_name, t.weight, {t.side, t.side, p.C}, "(side, side, C)", x);
  check_parameter(kOp, t.bias_name, t.bias, {p.C}, "(C,)", x);
  check_shape(kOp, t.kv_name, t.kv, {p.B, p.G, 2, p.h, p.d}, "(B, G, 2, heads, head width)");
  check_dtype(kOp, t.kv_name, t.kv, x.scalar_type());
  check_same_device(kOp, t.kv_name, t.kv, "x", x);
}

GroupPropagateParams checked_params(const Tensor& x, const BranchTensors& three,
                                    const BranchTensors& five, double scale) {
  check_map(kOp, "x", x);
  GroupPropagateParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  p.scale = scale;
  const Tensor& kv = three.kv;
  check(kv.dim() == 5 && kv.size(1) >= 1 && kv.size(3) * kv.size(4) == p.C && p.C >= 1, kOp,
        ": kv3 has shape ", shape_text(kv),
        "; expected (B, G, 2, heads, head width) with at least one token, and heads times head",
        " width the channels of x, ", p.C);
  p.G = kv.size(1);
  p.h = kv.size(3);
  p.d = kv.size(4);
  check_branch(p, three, x);
  check_branch(p, five, x);
  check(std::isfinite(scale), kOp, ": scale = ", scale, "; expected a finite number");
  return p;
}

// What a branch reads; inputs and the tensor that is returned are to be kept until it has.
Tensor set_branch(PropagateBranch& branch, const BranchTensors& t, Inputs& inputs) {
  branch.weight = inputs.parameter(t.weight);
  branch.bias = inputs.parameter(t.bias);
  const Tensor kv = unit_last_stride(t.kv);
  branch.kv = kv.const_data_ptr();
  copy_strides(kv, branch.kv_stride);
  return kv;
}

Tensor forward_cpu(Tensor x, Tensor w3, Tensor b3, Tensor w5, Tensor b5, Tensor kv3, Tensor kv5,
                   double scale) {
  const BranchTensors three{3, "w3", "b3", "kv3", w3, b3, kv3};
  const BranchTensors five{5, "w5", "b5", "kv5", w5, b5, kv5};
  GroupPropagateParams p = checked_params(x, three, five, scale);
  const Tensor y = empty_like_type(x, shape_of(x), x.scalar_type());
  if (is_empty(y)) return y;
  Inputs inputs;
  p.x = inputs.map(x);
  const Tensor kept3 = set_branch(p.branch[0], three, inputs);
  const Tensor kept5 = set_branch(p.branch[1], five, inputs);
  p.y = output_map(y);
  run_forward<GroupPropagateCpu>(p);
  return y;
}

Gradients backward_cpu(Tensor grad, Tensor x, Tensor w3, Tensor b3, Tensor w5, Tensor b5,
                       Tensor kv3, Tensor kv5, double scale, bool need_x, bool need_conv,
                       bool need_kv) {
  const BranchTensors three{3, "w3", "b3", "kv3", w3, b3, kv3};
  const BranchTensors five{5, "w5", "b5", "kv5", w5, b5, kv5};
  GroupPropagateParams p = checked_params(x, three, five, scale);
  check_like(kOp, "grad", grad, x);
  auto& [first, second] = p.branch;
  const Tensor grad_x = new_map_gradient(x, need_x);
  Gradients gradients{grad_x,
                      new_gradient(w3, need_conv, first.grad_weight),
                      new_gradient(b3, need_conv, first.grad_bias),
                      new_gradient(w5, need_conv, second.grad_weight),
                      new_gradient(b5, need_conv, second.grad_bias),
                      new_gradient(kv3, need_kv, first.grad_kv),
                      new_gradient(kv5, need_kv, second.grad_kv)};
  if (is_empty(x)) {
    zero_all(gradients);
    return gradients;
  }
  if (!(need_x || need_conv || need_kv)) return gradients;
  Inputs inputs;
  p.x = inputs.map(x);
  p.grad = inputs.map(grad);
  const Tensor kept3 = set_branch(first, three, inputs);
  const Tensor kept5 = set_branch(second, five, inputs);
  if (need_x) p.grad_x = output_map(grad_x);
  run_backward<GroupPropagateCpu>(p, x);
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("group_propagate", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("group_propagate_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
