// hybrid::gated_fuse: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "gated_fuse.h"

#include <string>
#include <tuple>

#include "../common/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "gated_fuse(Tensor x, Tensor[] m, Tensor? weight, Tensor? bias, Tensor? scale, bool residual)"
      " -> Tensor");
  m.def(
      "gated_fuse_backward(Tensor grad, Tensor x, Tensor[] m, Tensor? weight, Tensor? bias,"
      " Tensor? scale, bool residual, bool need_x, bool[] need_m, bool need_gate, bool need_scale)"
      " -> (Tensor grad_x, Tensor[] grad_m, Tensor grad_weight, Tensor grad_bias,"
      " Tensor grad_scale)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "gated_fuse";

void check_map(const char* name, const Tensor& t, const Tensor& x) {
  check_shape(kOp, name, t, {x.size(0), x.size(1), x.size(2), x.size(3)}, "(B, H, W, C), as x");
  check_dtype(kOp, name, t, x.scalar_type());
  check_same_device(kOp, name, t, "x", x);
}

void check_parameter(const char* name, const Tensor& t, const Tensor& x) {
  check_dtype(kOp, name, t, accumulate_type(x.scalar_type()));
  check_same_device(kOp, name, t, "x", x);
}

// What is multiplied into the maps: contiguous, and kept alive until the kernel returns.
using Parameter = std::optional<Tensor>;

struct Arguments {
  const Tensor& x;
  const std::vector<Tensor>& m;
  const Parameter &weight, &bias, &scale;
  bool residual;
};

GatedFuseParams checked_params(const Arguments& a) {
  const Tensor& x = a.x;
  check(x.dim() == 4, kOp, ": x has shape ", shape_text(x),
        "; expected 4 dimensions: (B, H, W, C)");
  GatedFuseParams p{};
  p.dtype = dtype_of(kOp, "x", x);
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  const int64_t n = static_cast<int64_t>(a.m.size());
  check(n >= 1 && n <= kMaxBranches, kOp, ": m has ", n, " branches; expected 1 to ", kMaxBranches);
  p.n = static_cast<int32_t>(n);
  p.residual = a.residual;
  for (int64_t k = 0; k < n; ++k) check_map(("m[" + std::to_string(k) + "]").c_str(), a.m[k], x);
  check(a.weight.has_value() == a.bias.has_value(), kOp, ": ", a.weight ? "bias" : "weight",
        " is None; give both weight and bias, or neither for the mean of the branches");
  for (const auto& [name, t] : {std::pair{"weight", &a.weight}, {"bias", &a.bias}}) {
    if (!*t) continue;
    check_shape(kOp, name, **t, {n, p.C}, "(branches, C)");
    check_parameter(name, **t, x);
  }
  if (a.scale) {
    const Tensor& scale = *a.scale;
    p.scale_channels = scale.dim() == 3 ? scale.size(2) : 0;
    const bool fits = scale.dim() == 3 && scale.size(0) == p.B && scale.size(1) == n &&
                      (p.scale_channels == p.C || p.scale_channels == 1);
    check(fits, kOp, ": scale has shape ", shape_text(scale), "; expected ",
          tuple_text(std::vector{p.B, n, p.C}), " or ", tuple_text(std::vector{p.B, n, int64_t{1}}),
          " = (B, branches, C) or (B, branches, 1)");
    check_parameter("scale", scale, x);
  }
  return p;
}

bool is_empty(const GatedFuseParams& p) { return p.B == 0 || p.H == 0 || p.W == 0 || p.C == 0; }

// The tensors that a kernel reads, kept alive until it returns.
class Inputs {
 public:
  Inputs(GatedFuseParams& p, const Arguments& a) {
    add_map(p.x, a.x);
    for (int32_t k = 0; k < p.n; ++k) add_map(p.m[k], a.m[k]);
    if (p.n > 1) {
      add_parameter(p.weight, a.weight);
      add_parameter(p.bias, a.bias);
    }
    add_parameter(p.scale, a.scale);
  }

  void add_map(FuseMap& map, const Tensor& any) {
    const Tensor& t = kept_.emplace_back(unit_last_stride(any));
    map.data = t.const_data_ptr();
    copy_strides(t, map.stride);
  }

 private:
  void add_parameter(const void*& data, const Parameter& any) {
    if (any) data = kept_.emplace_back(torch::stable::contiguous(*any)).const_data_ptr();
  }

  std::vector<Tensor> kept_;
};

Tensor forward_cpu(Tensor x, std::vector<Tensor> m, Parameter weight, Parameter bias,
                   Parameter scale, bool residual) {
  const Arguments arguments{x, m, weight, bias, scale, residual};
  GatedFuseParams p = checked_params(arguments);
  const Tensor y = empty_like_type(x, {p.B, p.H, p.W, p.C}, x.scalar_type());
  if (is_empty(p)) return y;
  const Inputs inputs(p, arguments);
  p.y = y.mutable_data_ptr();
  const GatedFuseCpu& kernels = cpu_table<GatedFuseCpu>();
  torch::stable::parallel_for(0, kernels.chunks(p), 1,
                              [&](int64_t begin, int64_t end) { kernels.forward(p, begin, end); });
  return y;
}

using Gradients = std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor, Tensor>;

Gradients new_gradients(GatedFuseParams& p, const Arguments& a, bool need_x,
                        const std::vector<bool>& need_m, bool need_gate, bool need_scale) {
  const ScalarType type = a.x.scalar_type(), wide = accumulate_type(type);
  const std::vector<int64_t> map{p.B, p.H, p.W, p.C}, gate{p.n, p.C};
  std::vector<Tensor> grad_m;
  for (int32_t k = 0; k < p.n; ++k)
    grad_m.push_back(new_gradient(a.x, need_m[k], map, type, p.grad_m[k]));
  return {new_gradient(a.x, need_x, map, type, p.grad_x), grad_m,
          new_gradient(a.x, need_gate, gate, wide, p.grad_weight),
          new_gradient(a.x, need_gate, gate, wide, p.grad_bias),
          new_gradient(a.x, need_scale, {p.B, p.n, p.scale_channels}, wide, p.grad_scale)};
}

// Of no pixels, and of the gate of a single branch.
void zero_parameter_gradients(Gradients& gradients, bool with_scale) {
  torch::stable::zero_(std::get<2>(gradients));
  torch::stable::zero_(std::get<3>(gradients));
  if (with_scale) torch::stable::zero_(std::get<4>(gradients));
}

Gradients backward_cpu(Tensor grad, Tensor x, std::vector<Tensor> m, Parameter weight,
                       Parameter bias, Parameter scale, bool residual, bool need_x,
                       std::vector<bool> need_m, bool need_gate, bool need_scale) {
  const Arguments arguments{x, m, weight, bias, scale, residual};
  GatedFuseParams p = checked_params(arguments);
  check_map("grad", grad, x);
  check(need_m.size() == m.size(), kOp, "_backward: need_m has ", need_m.size(),
        " entries; expected one for each of the ", p.n, " branches");
  check(!need_gate || weight, kOp, "_backward: need_gate is true but weight is None");
  check(!need_scale || scale, kOp, "_backward: need_scale is true but scale is None");

  Gradients gradients = new_gradients(p, arguments, need_x, need_m, need_gate, need_scale);
  if (is_empty(p) || p.n == 1) zero_parameter_gradients(gradients, is_empty(p));
  if (is_empty(p)) return gradients;
  if (p.n == 1) p.grad_weight = p.grad_bias = nullptr;

  Inputs inputs(p, arguments);
  inputs.add_map(p.grad, grad);
  const GatedFuseCpu& kernels = cpu_table<GatedFuseCpu>();
  const Tensor workspace = new_workspace(x, kernels.workspace_bytes(p), p.workspace);
  torch::stable::parallel_for(0, kernels.chunks(p), 1,
                              [&](int64_t begin, int64_t end) { kernels.backward(p, begin, end); });
  kernels.reduce(p);
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("gated_fuse", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("gated_fuse_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
