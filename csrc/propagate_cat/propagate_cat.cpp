// hybrid::propagate_cat: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "propagate_cat.h"

#include <algorithm>
#include <tuple>

#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "propagate_cat(Tensor[] maps, Tensor[] kernels, bool[] is_tokens, SymInt height,"
      " SymInt width) -> Tensor");
  m.def(
      "propagate_cat_backward(Tensor grad, Tensor[] maps, Tensor[] kernels, bool[] is_tokens,"
      " SymInt height, SymInt width, bool[] need_maps, bool[] need_kernels)"
      " -> (Tensor[] grad_maps, Tensor[] grad_kernels)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "propagate_cat";

using Tensors = std::vector<Tensor>;
using Flags = std::vector<bool>;

void check_counts(const Tensors& maps, const Tensors& kernels, const Flags& is_tokens) {
  check(!maps.empty() && maps.size() <= kMaxParts, kOp, ": maps has ", maps.size(),
        " entries; expected 1 to ", kMaxParts, "; join further ones with torch.cat");
  check(is_tokens.size() == maps.size(), kOp, ": is_tokens has ", is_tokens.size(),
        " entries; expected one for each of the ", maps.size(), " maps");
  const auto tokens = std::count(is_tokens.begin(), is_tokens.end(), true);
  check(static_cast<int64_t>(kernels.size()) == tokens, kOp, ": kernels has ", kernels.size(),
        " entries; expected one for each of the ", tokens, " maps of tokens");
}

void check_spread(const Tensor& z, const std::string& name, const Tensor& kernel,
                  const std::string& kernel_name, int64_t height, int64_t width) {
  const int64_t p = kernel.dim() == 3 && kernel.size(0) > 0 ? kernel.size(0) : 1;
  check_parameter(kOp, kernel_name.c_str(), kernel, {p, p, z.size(3)}, "(p, p, C)", z,
                  name.c_str());
  const auto fits = [&](int64_t count, int64_t size) {
    return count >= 1 && (count == ceil_div(size, p) || count == size / p);
  };
  check(fits(z.size(1), height) && fits(z.size(2), width), kOp, ": ", name, " has shape ",
        shape_text(z), "; expected ", height, " / ", p, " rows and ", width, " / ", p,
        " columns, rounded up or down and at least one");
}

PropagateCatParams checked_params(Inputs& inputs, const Tensors& maps, const Tensors& kernels,
                                  const Flags& is_tokens, int64_t height, int64_t width) {
  check_counts(maps, kernels, is_tokens);
  check(height >= 1, kOp, ": height = ", height, "; expected 1 or more");
  check(width >= 1, kOp, ": width = ", width, "; expected 1 or more");
  PropagateCatParams p{};
  p.dtype = dtype_of(kOp, "maps[0]", maps[0]);
  p.H = height;
  p.W = width;
  size_t next_kernel = 0;
  for (const Tensor& z : maps) {
    const std::string name = "maps[" + std::to_string(p.parts) + "]";
    check_map(kOp, name.c_str(), z);
    check(z.size(3) >= 1, kOp, ": ", name, " has shape ", shape_text(z),
          "; expected at least one channel");
    if (!p.parts) p.B = z.size(0);
    PropagatePart& part = p.part[p.parts];
    part = {inputs.map(z), z.size(1), z.size(2), 1, z.size(3), p.C, nullptr, {}, nullptr, nullptr};
    const bool is_spread = is_tokens[static_cast<size_t>(p.parts)];
    const int64_t rows = is_spread ? z.size(1) : height, columns = is_spread ? z.size(2) : width;
    check_shape(kOp, name.c_str(), z, {p.B, rows, columns, z.size(3)},
                is_spread ? "(B, h, w, C)" : "(B, height, width, C)");
    check_dtype(kOp, name.c_str(), z, maps[0].scalar_type());
    check_same_device(kOp, name.c_str(), z, "maps[0]", maps[0]);
    if (is_spread) {
      const std::string kernel_name = "kernels[" + std::to_string(next_kernel) + "]";
      const Tensor& kernel = kernels[next_kernel++];
      check_spread(z, name, kernel, kernel_name, height, width);
      part.p = kernel.size(0);
      part.kernel = inputs.parameter(kernel);
    }
    p.C += part.C;
    ++p.parts;
  }
  return p;
}

Tensor forward_cpu(Tensors maps, Tensors kernels, Flags is_tokens, int64_t height, int64_t width) {
  Inputs inputs;
  PropagateCatParams p = checked_params(inputs, maps, kernels, is_tokens, height, width);
  const Tensor y = empty_like_type(maps[0], {p.B, p.H, p.W, p.C}, maps[0].scalar_type());
  if (is_empty(y)) return y;
  p.y = output_map(y);
  const PropagateCatCpu& cpu = cpu_table<PropagateCatCpu>();
  torch::stable::parallel_for(0, p.B * p.H, 1,
                              [&](int64_t begin, int64_t end) { cpu.forward(p, begin, end); });
  return y;
}

void run_part(const PropagateCatParams& p, PropagatePart& part, const Tensor& like) {
  if (!part.grad_z.data && !part.grad_kernel) return;
  const PropagateCatCpu& cpu = cpu_table<PropagateCatCpu>();
  const Tensor workspace = new_workspace(like, cpu.workspace_bytes(p, part), part.workspace);
  torch::stable::parallel_for(0, cpu.runs(p, part), 1, [&](int64_t begin, int64_t end) {
    cpu.backward(p, part, begin, end);
  });
  if (part.grad_kernel) cpu.reduce(p, part);
}

std::tuple<Tensors, Tensors> backward_cpu(Tensor grad, Tensors maps, Tensors kernels,
                                          Flags is_tokens, int64_t height, int64_t width,
                                          Flags need_maps, Flags need_kernels) {
  Inputs inputs;
  PropagateCatParams p = checked_params(inputs, maps, kernels, is_tokens, height, width);
  check_shape(kOp, "grad", grad, {p.B, p.H, p.W, p.C}, "(B, height, width, channels)");
  check_dtype(kOp, "grad", grad, maps[0].scalar_type());
  check_same_device(kOp, "grad", grad, "maps[0]", maps[0]);
  check(need_maps.size() == maps.size() && need_kernels.size() == kernels.size(), kOp,
        "_backward: need_maps and need_kernels have ", need_maps.size(), " and ",
        need_kernels.size(), " entries; expected ", maps.size(), " and ", kernels.size());
  p.grad = inputs.map(grad);
  Tensors grad_maps, grad_kernels;
  for (size_t i = 0; i < maps.size(); ++i) {
    PropagatePart& part = p.part[i];
    grad_maps.push_back(new_map_gradient(maps[i], need_maps[i]));
    if (need_maps[i]) part.grad_z = output_map(grad_maps[i]);
    if (is_tokens[i]) {
      const size_t k = grad_kernels.size();
      grad_kernels.push_back(new_parameter_gradient(grad, need_kernels[k], shape_of(kernels[k])));
      if (need_kernels[k]) part.grad_kernel = grad_kernels[k].mutable_data_ptr();
    }
    if (!is_empty(grad)) run_part(p, part, grad);
  }
  if (is_empty(grad))
    for (Tensor& sum : grad_kernels) torch::stable::zero_(sum);
  return {grad_maps, grad_kernels};
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("propagate_cat", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("propagate_cat_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
