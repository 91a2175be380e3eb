// hybrid::token_fusion: schema, argument checks, tensors -> parameter struct, CPU registration. On
// CUDA tensors the op is served by Triton.
#include "token_fusion.h"

#include <cmath>
#include <tuple>

#include "../common/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("token_fusion(Tensor q, Tensor kv, Tensor y, float scale) -> Tensor");
  m.def(
      "token_fusion_backward(Tensor grad, Tensor q, Tensor kv, float scale, bool need_q,"
      " bool need_kv) -> (Tensor grad_q, Tensor grad_kv)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "token_fusion";

void check_like_q(const char* name, const Tensor& t, const std::vector<int64_t>& shape,
                  const char* meaning, const Tensor& q) {
  check_shape(kOp, name, t, shape, meaning);
  check_dtype(kOp, name, t, q.scalar_type());
  check_same_device(kOp, name, t, "q", q);
}

// `other` is y, or the gradient of z.
TokenFusionParams checked_params(const Tensor& q, const Tensor& kv, const char* other_name,
                                 const Tensor& other, double scale) {
  check(q.dim() == 4, kOp, ": q has shape ", shape_text(q),
        "; expected 4 dimensions: (B, N, heads, head width)");
  TokenFusionParams p{};
  p.dtype = dtype_of(kOp, "q", q);
  p.B = q.size(0);
  p.N = q.size(1);
  p.h = q.size(2);
  p.d = q.size(3);
  p.M = kv.dim() == 5 ? kv.size(1) : 0;
  p.scale = scale;
  check(p.h >= 1 && p.d >= 1, kOp, ": q has shape ", shape_text(q),
        "; expected at least one head and one channel");
  check_like_q("kv", kv, {p.B, p.M, 2, p.h, p.d}, "(B, M, 2, heads, head width)", q);
  check(p.M >= 1, kOp, ": kv holds no token, shape ", shape_text(kv), "; expected at least one");
  check_like_q(other_name, other, {p.B, p.N, p.h, p.d}, "(B, N, heads, head width), as q", q);
  check(std::isfinite(scale), kOp, ": scale = ", scale, "; expected a finite number");
  return p;
}

bool is_empty(const TokenFusionParams& p) { return p.B == 0 || p.N == 0; }

// The tensors that a launch reads, kept alive until it returns.
class Inputs {
 public:
  Inputs(TokenFusionParams& p, const Tensor& q, const Tensor& kv) {
    add(p.q, q);
    const Tensor& t = kept_.emplace_back(unit_last_stride(kv));
    p.kv = t.const_data_ptr();
    copy_strides(t, p.kv_stride);
  }

  void add(AttentionTokens& tokens, const Tensor& any) {
    const Tensor& t = kept_.emplace_back(unit_last_stride(any));
    tokens.data = t.const_data_ptr();
    copy_strides(t, tokens.stride);
  }

 private:
  std::vector<Tensor> kept_;
};

template <class Kernel>
void for_chunks(const TokenFusionParams& p, const Kernel& kernel) {
  torch::stable::parallel_for(0, p.B * fusion_pieces(p), 1,
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

Tensor forward_cpu(Tensor q, Tensor kv, Tensor y, double scale) {
  TokenFusionParams p = checked_params(q, kv, "y", y, scale);
  const Tensor out = empty_like_type(q, {p.B, p.N, p.h, p.d}, q.scalar_type());
  if (is_empty(p)) return out;
  Inputs inputs(p, q, kv);
  inputs.add(p.y, y);
  p.out = out.mutable_data_ptr();
  for_chunks(p, cpu_table<TokenFusionCpu>().forward);
  return out;
}

std::tuple<Tensor, Tensor> backward_cpu(Tensor grad, Tensor q, Tensor kv, double scale, bool need_q,
                                        bool need_kv) {
  TokenFusionParams p = checked_params(q, kv, "grad", grad, scale);
  const ScalarType type = q.scalar_type();
  const Tensor grad_q = new_gradient(q, need_q, {p.B, p.N, p.h, p.d}, type, p.grad_q);
  Tensor grad_kv = new_gradient(q, need_kv, {p.B, p.M, 2, p.h, p.d}, type, p.grad_kv);
  if (is_empty(p)) torch::stable::zero_(grad_kv);
  if (is_empty(p) || !(need_q || need_kv)) return {grad_q, grad_kv};
  Inputs inputs(p, q, kv);
  inputs.add(p.grad, grad);
  const TokenFusionCpu& kernels = cpu_table<TokenFusionCpu>();
  const Tensor workspace = new_workspace(q, kernels.workspace_bytes(p), p.workspace);
  for_chunks(p, kernels.backward);
  if (need_kv)
    torch::stable::parallel_for(0, p.B, 1,
                                [&](int64_t begin, int64_t end) { kernels.reduce(p, begin, end); });
  return {grad_q, grad_kv};
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("token_fusion", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("token_fusion_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
