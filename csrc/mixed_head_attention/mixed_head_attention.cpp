// hybrid::mixed_head_attention: schema, argument checks, tensors -> parameter struct, CPU
// registration. On CUDA tensors the op is served by Triton.
#include "mixed_head_attention.h"

#include <array>
#include <cmath>
#include <deque>
#include <tuple>

#include "../common/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "mixed_head_attention(Tensor q, Tensor k, Tensor v, Tensor w1, Tensor b1, Tensor w2,"
      " Tensor b2, float scale) -> (Tensor out, Tensor lse)");
  m.def(
      "mixed_head_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor w1,"
      " Tensor b1, Tensor w2, Tensor b2, Tensor lse, float scale, bool need_qk, bool need_v,"
      " bool need_mix) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_w1,"
      " Tensor grad_b1, Tensor grad_w2, Tensor grad_b2)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "mixed_head_attention";
constexpr const char* kTokens = "(B, M, heads, head width), as q";

// q, k, v, w1, b1, w2, b2.
using Arguments = std::array<Tensor, 7>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

void check_like_q(const char* name, const Tensor& t, const std::vector<int64_t>& shape,
                  const char* meaning, const Tensor& q) {
  check_shape(kOp, name, t, shape, meaning);
  check_dtype(kOp, name, t, q.scalar_type());
  check_same_device(kOp, name, t, "q", q);
}

MixedHeadAttentionParams checked_params(const Arguments& given, double scale) {
  const auto& [q, k, v, w1, b1, w2, b2] = given;
  check(q.dim() == 4, kOp, ": q has shape ", shape_text(q),
        "; expected 4 dimensions: (B, M, heads, head width)");
  MixedHeadAttentionParams p{};
  p.dtype = dtype_of(kOp, "q", q);
  p.B = q.size(0);
  p.M = q.size(1);
  p.h = q.size(2);
  p.d = q.size(3);
  p.g = w1.dim() == 2 ? w1.size(0) : 0;
  p.scale = scale;
  check(p.M >= 1 && p.h >= 1 && p.d >= 1, kOp, ": q has shape ", shape_text(q),
        "; expected at least one token, one head and one channel");
  check_like_q("k", k, shape_of(q), kTokens, q);
  check_like_q("v", v, shape_of(q), kTokens, q);
  check_like_q("w1", w1, {p.g, p.h}, "(mixed heads, heads)", q);
  check(p.g >= 1, kOp, ": w1 has shape ", shape_text(w1), "; expected at least one mixed head");
  check_like_q("b1", b1, {p.g}, "(mixed heads,)", q);
  check_like_q("w2", w2, {p.h, p.g}, "(heads, mixed heads)", q);
  check_like_q("b2", b2, {p.h}, "(heads,)", q);
  check(std::isfinite(scale), kOp, ": scale = ", scale, "; expected a finite number");
  return p;
}

// The tensors that a launch reads, kept alive until it returns.
class Inputs {
 public:
  Inputs(MixedHeadAttentionParams& p, const Arguments& given) {
    const auto& [q, k, v, w1, b1, w2, b2] = given;
    add(p.q, q), add(p.k, k), add(p.v, v);
    p.w1 = dense(w1), p.b1 = dense(b1), p.w2 = dense(w2), p.b2 = dense(b2);
  }

  void add(AttentionTokens& tokens, const Tensor& any) {
    const Tensor& t = kept_.emplace_back(unit_last_stride(any));
    tokens.data = t.const_data_ptr();
    copy_strides(t, tokens.stride);
  }

  const void* dense(const Tensor& any) {
    return kept_.emplace_back(as_contiguous(any)).const_data_ptr();
  }

 private:
  std::deque<Tensor> kept_;
};

template <class Kernel>
void in_parallel(int64_t count, const MixedHeadAttentionParams& p, const Kernel& kernel) {
  torch::stable::parallel_for(0, count, 1,
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

std::tuple<Tensor, Tensor> forward_cpu(Tensor q, Tensor k, Tensor v, Tensor w1, Tensor b1,
                                       Tensor w2, Tensor b2, double scale) {
  const Arguments given{q, k, v, w1, b1, w2, b2};
  MixedHeadAttentionParams p = checked_params(given, scale);
  const Tensor out = empty_like_type(q, shape_of(q), q.scalar_type());
  const Tensor lse = empty_like_type(q, {p.B, p.g, p.M}, accumulate_type(q.scalar_type()));
  if (p.B == 0) return {out, lse};
  const Inputs inputs(p, given);
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();
  in_parallel(p.B * query_pieces(p), p, cpu_table<MixedHeadAttentionCpu>().forward);
  return {out, lse};
}

Gradients backward_cpu(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor w1, Tensor b1,
                       Tensor w2, Tensor b2, Tensor lse, double scale, bool need_qk, bool need_v,
                       bool need_mix) {
  const Arguments given{q, k, v, w1, b1, w2, b2};
  MixedHeadAttentionParams p = checked_params(given, scale);
  check_like_q("grad_out", grad_out, shape_of(q), kTokens, q);
  void* grad_b1 = nullptr;
  Gradients gradients{new_gradient(q, need_qk, p.grad_q),   new_gradient(k, need_qk, p.grad_k),
                      new_gradient(v, need_v, p.grad_v),    new_gradient(w1, need_mix, p.grad_w1),
                      new_gradient(b1, need_mix, grad_b1),  new_gradient(w2, need_mix, p.grad_w2),
                      new_gradient(b2, need_mix, p.grad_b2)};
  torch::stable::zero_(std::get<4>(gradients));
  if (p.B == 0) {
    torch::stable::zero_(std::get<3>(gradients));
    torch::stable::zero_(std::get<5>(gradients));
    torch::stable::zero_(std::get<6>(gradients));
  }
  if (p.B == 0 || !(need_qk || need_v || need_mix)) return gradients;
  Inputs inputs(p, given);
  inputs.add(p.grad, grad_out);
  const MixedHeadAttentionCpu& kernels = cpu_table<MixedHeadAttentionCpu>();
  const Tensor workspace = new_workspace(q, kernels.workspace_bytes(p), p.workspace);
  in_parallel(p.B * query_pieces(p), p, kernels.backward);
  if (need_qk || need_v) in_parallel(p.B, p, kernels.reduce_tokens);
  if (need_mix) kernels.reduce_layers(p);
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("mixed_head_attention", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("mixed_head_attention_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
