// hybrid::patch_embed: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "patch_embed.h"

#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "patch_embed(Tensor x, Tensor weight, int patch, str kind, str pool_mode) -> (Tensor z,"
      " Tensor index, Tensor pooled)");
  // SymInt: sizes of the map, which a compiled graph must not take for constants.
  m.def(
      "patch_embed_backward(Tensor grad, Tensor pooled, Tensor weight, Tensor index,"
      " SymInt height, SymInt width, int patch, str kind, str pool_mode, bool need_x,"
      " bool need_weight) -> (Tensor grad_x, Tensor grad_weight)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "patch_embed";

struct Pooling {
  int64_t patch;
  const std::string &kind, &pool_mode;
};

// Parameters for maps (B, H, W, C).
PatchEmbedParams checked_params(const std::vector<int64_t>& shape, const Tensor& weight,
                                const Pooling& a) {
  PatchEmbedParams p{};
  p.B = shape[0];
  p.H = shape[1];
  p.W = shape[2];
  p.C = shape[3];
  check(p.C >= 1, kOp, ": x has shape ", tuple_text(shape), "; expected at least one channel");
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
  p.width = weight.dim() == 2 ? weight.size(0) : 0;
  check_shape(kOp, "weight", weight, {p.width, p.C}, "(C', C)");
  check(p.width >= 1, kOp, ": weight has shape ", shape_text(weight), "; expected C' >= 1");
  return p;
}

void check_beside(const char* name, const Tensor& t, const char* first_name, const Tensor& first) {
  check_dtype(kOp, name, t, first.scalar_type());
  check_same_device(kOp, name, t, first_name, first);
}

std::tuple<Tensor, Tensor, Tensor> forward_cpu(Tensor x, Tensor weight, int64_t patch,
                                               std::string kind, std::string pool_mode) {
  check_map(kOp, "x", x);
  PatchEmbedParams p = checked_params(shape_of(x), weight, {patch, kind, pool_mode});
  p.dtype = dtype_of(kOp, "x", x);
  check_beside("weight", weight, "x", x);
  const std::vector<int64_t> grid{p.B, p.rows, p.columns, p.C};
  const Tensor z = empty_like_type(x, {p.B, p.rows, p.columns, p.width}, x.scalar_type());
  const Tensor index = new_empty(x, p.is_max ? grid : std::vector<int64_t>{0}, ScalarType::Byte);
  const Tensor pooled = empty_like_type(x, grid, x.scalar_type());
  if (is_empty(x)) return {z, index, pooled};
  Inputs inputs;
  p.x = inputs.map(x);
  p.weight = inputs.parameter(weight);
  p.z = z.mutable_data_ptr();
  p.pooled = pooled.mutable_data_ptr();
  if (p.is_max) p.index = static_cast<uint8_t*>(index.mutable_data_ptr());
  run_forward<PatchEmbedCpu>(p);
  return {z, index, pooled};
}

struct BackwardArguments {
  const Tensor &grad, &pooled, &weight, &index;
  int64_t height, width;
};

PatchEmbedParams checked_params(const BackwardArguments& a, const Pooling& pooling) {
  check(a.pooled.dim() == 4, kOp, ": pooled has shape ", shape_text(a.pooled),
        "; expected 4 dimensions: (B, H', W', C)");
  check(a.height >= 1 && a.width >= 1, kOp, ": a map of ", a.height, " x ", a.width,
        " pixels; expected at least one");
  PatchEmbedParams p =
      checked_params({a.pooled.size(0), a.height, a.width, a.pooled.size(3)}, a.weight, pooling);
  p.dtype = dtype_of(kOp, "grad", a.grad);
  const std::vector<int64_t> grid{p.B, p.rows, p.columns, p.C};
  check_shape(kOp, "pooled", a.pooled, grid, "(B, H', W', C)");
  check_shape(kOp, "grad", a.grad, {p.B, p.rows, p.columns, p.width}, "(B, H', W', C')");
  check_beside("pooled", a.pooled, "grad", a.grad);
  check_beside("weight", a.weight, "grad", a.grad);
  if (p.is_max) {
    check_shape(kOp, "index", a.index, grid, "(B, H', W', C)");
    check(a.index.scalar_type() == ScalarType::Byte, kOp, ": index is not uint8");
    check_same_device(kOp, "index", a.index, "grad", a.grad);
  }
  return p;
}

std::tuple<Tensor, Tensor> backward_cpu(Tensor grad, Tensor pooled, Tensor weight, Tensor index,
                                        int64_t height, int64_t width, int64_t patch,
                                        std::string kind, std::string pool_mode, bool need_x,
                                        bool need_weight) {
  PatchEmbedParams p =
      checked_params({grad, pooled, weight, index, height, width}, {patch, kind, pool_mode});
  const Tensor grad_x =
      new_gradient(grad, need_x, {p.B, p.H, p.W, p.C}, grad.scalar_type(), p.grad_x);
  Tensor grad_weight = new_parameter_gradient(grad, need_weight, {p.width, p.C});
  if (p.B == 0) torch::stable::zero_(grad_weight);
  if (p.B == 0 || !(need_x || need_weight)) return {grad_x, grad_weight};
  Inputs inputs;
  p.weight = inputs.parameter(weight);
  p.grad = inputs.map(grad);
  p.pooled = const_cast<void*>(inputs.parameter(pooled));
  if (p.is_max)
    p.index = const_cast<uint8_t*>(static_cast<const uint8_t*>(inputs.parameter(index)));
  if (need_weight) p.grad_weight = grad_weight.mutable_data_ptr();
  run_backward<PatchEmbedCpu>(p, grad);
  return {grad_x, grad_weight};
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("patch_embed", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("patch_embed_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
