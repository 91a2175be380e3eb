// hybrid::multiscale_attention: schema, argument checks, tensors -> parameter struct, registration.
#include "multiscale_attention.h"

#include <cmath>
#include <string>
#include <tuple>

#include "../common/launch.h"
#include "../common/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "multiscale_attention(Tensor q, Tensor[] ks, Tensor[] vs, float scale)"
      " -> (Tensor out, Tensor lse)");
  m.def(
      "multiscale_attention_backward(Tensor grad_out, Tensor q, Tensor[] ks, Tensor[] vs,"
      " Tensor out, Tensor lse, float scale, bool need_q, bool[] need_ks, bool[] need_vs)"
      " -> (Tensor grad_q, Tensor[] grad_ks, Tensor[] grad_vs)");
}

namespace hybrid {
namespace {

constexpr const char* kOp = "multiscale_attention";

using Tensors = std::vector<Tensor>;

void check_width(const char* name, int64_t width) {
  check(width >= 1 && width <= kMaxHeadDim, kOp, ": ", name, " has head width ", width,
        "; expected 1 to ", kMaxHeadDim);
}

void check_segment(const std::string& name, const Tensor& t, const Tensor& q, int64_t keys,
                   int64_t width) {
  check_shape(kOp, name.c_str(), t, {q.size(0), keys, q.size(2), width},
              "(B, keys, heads, head width)");
  check_dtype(kOp, name.c_str(), t, q.scalar_type());
  check_same_device(kOp, name.c_str(), t, "q", q);
}

MultiscaleAttentionParams checked_params(const Tensor& q, const Tensors& ks, const Tensors& vs,
                                         double scale) {
  check(q.dim() == 4, kOp, ": q has shape ", shape_text(q),
        "; expected 4 dimensions: (B, N, heads, head width)");
  MultiscaleAttentionParams p{};
  p.dtype = dtype_of(kOp, "q", q);
  const int64_t segments = static_cast<int64_t>(ks.size());
  check(segments >= 1 && segments <= kMaxSegments, kOp, ": ks has ", segments,
        " segments; expected 1 to ", kMaxSegments, "; join some of them with torch.cat");
  check(vs.size() == ks.size(), kOp, ": vs has ", vs.size(), " segments; expected ", segments,
        ", one for each of ks");
  check(q.size(2) >= 1, kOp, ": q has no heads, shape ", shape_text(q));
  check_width("q", q.size(3));
  check(vs[0].dim() == 4, kOp, ": vs[0] has shape ", shape_text(vs[0]),
        "; expected 4 dimensions: (B, keys, heads, head width)");
  check_width("vs[0]", vs[0].size(3));
  check(std::isfinite(scale), kOp, ": scale = ", scale, "; expected a finite number");
  p.B = q.size(0);
  p.N = q.size(1);
  p.h = static_cast<int32_t>(q.size(2));
  p.d = static_cast<int32_t>(q.size(3));
  p.dv = static_cast<int32_t>(vs[0].size(3));
  p.segments = static_cast<int32_t>(segments);
  p.scale = scale;
  for (int64_t i = 0; i < segments; ++i) {
    const std::string index = "[" + std::to_string(i) + "]";
    const int64_t keys = ks[i].dim() == 4 ? ks[i].size(1) : 0;
    check_segment("ks" + index, ks[i], q, keys, p.d);
    check_segment("vs" + index, vs[i], q, keys, p.dv);
    p.segment[i].M = keys;
    p.M += keys;
  }
  check(p.M >= 1 || p.B * p.N == 0, kOp, ": ks hold no key for the ", p.N,
        " queries; expected at least one");
  return p;
}

bool is_empty(const MultiscaleAttentionParams& p) { return p.B == 0 || p.N == 0; }

// The tensors that a launch reads, kept alive until it returns.
class Inputs {
 public:
  Inputs(MultiscaleAttentionParams& p, const Tensor& q, const Tensors& ks, const Tensors& vs) {
    add(p.q, q);
    for (int32_t i = 0; i < p.segments; ++i) {
      add(p.segment[i].k, ks[i]);
      add(p.segment[i].v, vs[i]);
    }
  }

  void add(AttentionTokens& tokens, const Tensor& any) {
    const Tensor& t = kept_.emplace_back(unit_last_stride(any));
    tokens.data = t.const_data_ptr();
    copy_strides(t, tokens.stride);
  }

 private:
  Tensors kept_;
};

template <class Launch>
std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensors& ks, const Tensors& vs,
                                   double scale, const Launch& launch) {
  MultiscaleAttentionParams p = checked_params(q, ks, vs, scale);
  const ScalarType type = q.scalar_type();
  Tensor out = empty_like_type(q, {p.B, p.N, p.h, p.dv}, type);
  Tensor lse = empty_like_type(q, {p.B, p.h, p.N}, accumulate_type(type));
  if (is_empty(p)) return {out, lse};
  const Inputs inputs(p, q, ks, vs);
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();
  launch(p);
  return {out, lse};
}

// A gradient that is not needed has no elements; without queries it is zero.
Tensor gradient_or_zeros(const MultiscaleAttentionParams& p, const Tensor& q, bool needed,
                         const std::vector<int64_t>& shape, void*& data) {
  Tensor grad = new_gradient(q, needed, shape, q.scalar_type(), data);
  if (needed && is_empty(p)) torch::stable::zero_(grad);
  return grad;
}

using Gradients = std::tuple<Tensor, Tensors, Tensors>;

void check_backward(const MultiscaleAttentionParams& p, const Tensor& grad_out, const Tensor& q,
                    const Tensor& out, const Tensor& lse, size_t need_ks, size_t need_vs) {
  for (const auto& [name, tensor] : {std::pair{"grad_out", &grad_out}, {"out", &out}}) {
    check_shape(kOp, name, *tensor, {p.B, p.N, p.h, p.dv}, "(B, N, heads, value width)");
    check_dtype(kOp, name, *tensor, q.scalar_type());
    check_same_device(kOp, name, *tensor, "q", q);
  }
  check_shape(kOp, "lse", lse, {p.B, p.h, p.N}, "(B, heads, N)");
  check_dtype(kOp, "lse", lse, accumulate_type(q.scalar_type()));
  check_same_device(kOp, "lse", lse, "q", q);
  for (const auto& [name, count] : {std::pair{"need_ks", need_ks}, {"need_vs", need_vs}})
    check(count == static_cast<size_t>(p.segments), kOp, "_backward: ", name, " has ", count,
          " entries; expected one for each of the ", p.segments, " segments");
}

template <class WorkspaceBytes, class Launch>
Gradients backward(const Tensor& grad_out, const Tensor& q, const Tensors& ks, const Tensors& vs,
                   const Tensor& out, const Tensor& lse, double scale, bool need_q,
                   const std::vector<bool>& need_ks, const std::vector<bool>& need_vs,
                   const WorkspaceBytes& workspace_bytes, const Launch& launch) {
  MultiscaleAttentionParams p = checked_params(q, ks, vs, scale);
  check_backward(p, grad_out, q, out, lse, need_ks.size(), need_vs.size());
  Gradients gradients{gradient_or_zeros(p, q, need_q, {p.B, p.N, p.h, p.d}, p.grad_q), {}, {}};
  bool any = p.grad_q;
  for (int32_t i = 0; i < p.segments; ++i) {
    AttentionSegment& s = p.segment[i];
    auto& [grad_q, grad_ks, grad_vs] = gradients;
    grad_ks.push_back(gradient_or_zeros(p, q, need_ks[i], {p.B, s.M, p.h, p.d}, s.grad_k));
    grad_vs.push_back(gradient_or_zeros(p, q, need_vs[i], {p.B, s.M, p.h, p.dv}, s.grad_v));
    any = any || s.grad_k || s.grad_v;
  }
  if (is_empty(p) || !any) return gradients;
  Inputs inputs(p, q, ks, vs);
  inputs.add(p.grad_out, grad_out);
  const Tensor out_dense = torch::stable::contiguous(out);
  const Tensor lse_dense = torch::stable::contiguous(lse);
  p.out = out_dense.mutable_data_ptr();
  p.lse = lse_dense.mutable_data_ptr();
  const Tensor workspace = new_workspace(q, workspace_bytes(p), p.workspace);
  launch(p);
  return gradients;
}

#if !defined(HYBRID_HOST_EMULATOR)

std::tuple<Tensor, Tensor> forward_cpu(Tensor q, Tensors ks, Tensors vs, double scale) {
  return forward(q, ks, vs, scale, [](const MultiscaleAttentionParams& p) {
    const auto& kernels = cpu_table<MultiscaleAttentionCpu>();
    torch::stable::parallel_for(0, kernels.forward_chunks(p), 1, [&](int64_t begin, int64_t end) {
      kernels.forward(p, begin, end);
    });
  });
}

Gradients backward_cpu(Tensor grad_out, Tensor q, Tensors ks, Tensors vs, Tensor out, Tensor lse,
                       double scale, bool need_q, std::vector<bool> need_ks,
                       std::vector<bool> need_vs) {
  const auto& kernels = cpu_table<MultiscaleAttentionCpu>();
  return backward(grad_out, q, ks, vs, out, lse, scale, need_q, need_ks, need_vs,
                  kernels.workspace_bytes, [&](const MultiscaleAttentionParams& p) {
                    torch::stable::parallel_for(
                        0, kernels.backward_chunks(p), 1,
                        [&](int64_t begin, int64_t end) { kernels.backward(p, begin, end); });
                    if (!p.workspace) return;
                    torch::stable::parallel_for(0, p.B * p.h, 1, [&](int64_t begin, int64_t end) {
                      kernels.reduce(p, begin, end);
                    });
                  });
}

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

std::tuple<Tensor, Tensor> forward_cuda(Tensor q, Tensors ks, Tensors vs, double scale) {
  check_cuda_dtype(kOp, "q", q);
  return forward(q, ks, vs, scale, [&](const MultiscaleAttentionParams& p) {
    launch_on_device_of(kOp, q,
                        [&](void* stream) { return hk_multiscale_attention_forward(&p, stream); });
  });
}

Gradients backward_cuda(Tensor grad_out, Tensor q, Tensors ks, Tensors vs, Tensor out, Tensor lse,
                        double scale, bool need_q, std::vector<bool> need_ks,
                        std::vector<bool> need_vs) {
  check_cuda_dtype(kOp, "q", q);
  return backward(
      grad_out, q, ks, vs, out, lse, scale, need_q, need_ks, need_vs,
      [](const MultiscaleAttentionParams& p) {
        return hk_multiscale_attention_workspace_bytes(&p);
      },
      [&](const MultiscaleAttentionParams& p) {
        launch_on_device_of(
            kOp, q, [&](void* stream) { return hk_multiscale_attention_backward(&p, stream); });
      });
}

#endif

}  // namespace
}  // namespace hybrid

#if !defined(HYBRID_HOST_EMULATOR)
// For Python, by ctypes.
extern "C" __attribute__((visibility("default"))) int hybrid_multiscale_attention_fits_cache(
    int64_t queries, int64_t keys) {
  return hybrid::cpu_table<hybrid::MultiscaleAttentionCpu>().fits_cache(queries, keys);
}

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("multiscale_attention", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("multiscale_attention_backward", TORCH_BOX(&hybrid::backward_cpu));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("multiscale_attention", TORCH_BOX(&hybrid::forward_cuda));
  m.impl("multiscale_attention_backward", TORCH_BOX(&hybrid::backward_cuda));
}
#endif
