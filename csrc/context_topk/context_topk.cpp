// hybrid::context_topk: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "context_topk.h"

#include "../common/two_stages.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  // SymInt: a share of the tokens, which a compiled graph must not take for a constant.
  m.def("context_topk(Tensor u, SymInt n) -> Tensor");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "context_topk";

Tensor forward_cpu(Tensor u, int64_t n) {
  check(u.dim() == 3, kOp, ": u has shape ", shape_text(u), "; expected 3 dimensions: (B, N, C)");
  ContextTopkParams p{};
  p.dtype = dtype_of(kOp, "u", u);
  p.B = u.size(0);
  p.N = u.size(1);
  p.C = u.size(2);
  p.n = n;
  check(p.C >= 1, kOp, ": u has shape ", shape_text(u), "; expected at least one channel");
  check(n >= 1 && n <= p.N, kOp, ": n = ", n, "; expected 1 to the ", p.N, " tokens of an image");
  const Tensor index = empty_like_type(u, {p.B, n}, ScalarType::Int);
  if (p.B == 0) return index;
  const Tensor dense = unit_last_stride(u);
  const Tensor keys = empty_like_type(u, {p.B, p.N}, accumulate_type(u.scalar_type()));
  p.u = dense.const_data_ptr();
  for (int64_t i = 0; i < 2; ++i) p.stride[i] = dense.stride(i);
  p.index = static_cast<int32_t*>(index.mutable_data_ptr());
  p.keys = keys.mutable_data_ptr();
  const ContextTopkCpu& kernels = cpu_table<ContextTopkCpu>();
  run_two_stages(
      p.B, topk_pieces(p), [&](int64_t begin, int64_t end) { kernels.make_keys(p, begin, end); },
      [&](int64_t begin, int64_t end) { kernels.select(p, begin, end); });
  return index;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("context_topk", TORCH_BOX(&hybrid::forward_cpu));
}

#endif
