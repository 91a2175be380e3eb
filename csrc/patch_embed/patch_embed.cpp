// hybrid::patch_embed: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "patch_embed.h"

#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "patch_embed(Tensor x, Tensor weight, int patch, str kind, str pool_mode) -> (Tensor z,"
      " Tensor index)");
  m.def(
      "patch_embed_backward(Tensor grad, Tensor x, Tensor weight, Tensor index, int patch, str "
      "kind,"
      " str pool_mode, bool need_x, bool need_weight) -> (Tensor grad_x, Tensor grad_weight)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "patch_embed";

struct Arguments {
  const Tensor &x, &weight;
  int64_t patch;
  const std::string &kind, &pool_mode;
};

PatchEmbedParams checked_params(const Arguments& a) {
  check_map(kOp, "x", a.x);
  PatchEmbedParams p{};
  p.dtype = dtype_of(kOp, "x", a.x);
  p.B = a.x.size(0);
  p.H = a.x.size(1);
  p.W = a.x.size(2);
  p.C = a.x.size(3);
  check(p.C >= 1, kOp, ": x has shape ", shape_text(a.x), "; expected at least one channel");
  check(a.patch >= 1 && a.patch <= kMaxPatch, kOp, ": patch = ", a.patch, "; expected 1 to ",
        kMaxPatch);
  check(a.kind == "max" || a.kind == "avg", kOp, ": kind = '", a.kind, "'; expected max or avg");
  check(a.pool_mode == "ceil" || a.pool_mode == "floor", kOp, ": pool_mode = '", a.pool_mode,
        "'; expected ceil or floor");
  p.patch = a.patch;
  p.is_max = a.kind == "max";
  const int64_t further = a.pool_mode == "ceil" ? a.patch - 1 : 0;
  p.rows = (p.H + further) / a.patch;
  p.columns = (p.W + further) / a.patch;
  check(p.rows >= 1 && p.columns >= 1, kOp, ": x is a map of ", p.H, " x ", p.W,
        " pixels, which holds no whole patch of side ", a.patch, "; use pool_mode = 'ceil'");
  p.width = a.weight.dim() == 2 ? a.weight.size(0) : 0;
  check_shape(kOp, "weight", a.weight, {p.width, p.C}, "(C', C)");
  check(p.width >= 1, kOp, ": weight has shape ", shape_text(a.weight), "; expected C' >= 1");
  check_dtype(kOp, "weight", a.weight, a.x.scalar_type());
  check_same_device(kOp, "weight", a.weight, "x", a.x);
  return p;
}

Tensor new_index(const PatchEmbedParams& p, const Tensor& x) {
  const std::vector<int64_t> shape{p.B, p.rows, p.columns, p.C};
  return torch::stable::new_empty(x, p.is_max ? shape : std::vector<int64_t>{0}, ScalarType::Byte);
}

std::tuple<Tensor, Tensor> forward_cpu(Tensor x, Tensor weight, int64_t patch, std::string kind,
                                       std::string pool_mode) {
  PatchEmbedParams p = checked_params({x, weight, patch, kind, pool_mode});
  const Tensor z = empty_like_type(x, {p.B, p.rows, p.columns, p.width}, x.scalar_type());
  const Tensor index = new_index(p, x);
  if (is_empty(x)) return {z, index};
  Inputs inputs;
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  p.z = z.mutable_data_ptr();
  if (p.is_max) p.index = static_cast<uint8_t*>(index.mutable_data_ptr());
  const PatchEmbedCpu& kernels = cpu_table<PatchEmbedCpu>();
  torch::stable::parallel_for(0, kernels.chunks(p), 1,
                              [&](int64_t begin, int64_t end) { kernels.forward(p, begin, end); });
  return {z, index};
}

std::tuple<Tensor, Tensor> backward_cpu(Tensor grad, Tensor x, Tensor weight, Tensor index,
                                        int64_t patch, std::string kind, std::string pool_mode,
                                        bool need_x, bool need_weight) {
  PatchEmbedParams p = checked_params({x, weight, patch, kind, pool_mode});
  check_shape(kOp, "grad", grad, {p.B, p.rows, p.columns, p.width}, "(B, H', W', C')");
  check_dtype(kOp, "grad", grad, x.scalar_type());
  check_same_device(kOp, "grad", grad, "x", x);
  if (p.is_max) {
    check_shape(kOp, "index", index, {p.B, p.rows, p.columns, p.C}, "(B, H', W', C)");
    check(index.scalar_type() == ScalarType::Byte, kOp, ": index is not uint8");
    check_same_device(kOp, "index", index, "x", x);
  }
  const Tensor grad_x = new_gradient(x, need_x, p.grad_x);
  Tensor grad_weight = new_parameter_gradient(x, need_weight, {p.width, p.C});
  if (is_empty(x)) torch::stable::zero_(grad_weight);
  if (is_empty(x) || !(need_x || need_weight)) return {grad_x, grad_weight};
  Inputs inputs;
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  p.grad = inputs.map(grad);
  if (p.is_max)
    p.index = const_cast<uint8_t*>(static_cast<const uint8_t*>(inputs.parameter(index)));
  if (need_weight) p.grad_weight = grad_weight.mutable_data_ptr();
  const PatchEmbedCpu& kernels = cpu_table<PatchEmbedCpu>();
  const Tensor workspace = new_workspace(x, kernels.workspace_bytes(p), p.workspace);
  torch::stable::parallel_for(0, kernels.chunks(p), 1,
                              [&](int64_t begin, int64_t end) { kernels.backward(p, begin, end); });
  kernels.reduce(p);
  return {grad_x, grad_weight};
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("patch_embed", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("patch_embed_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
