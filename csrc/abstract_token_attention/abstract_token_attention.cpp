// hybrid::abstract_token_attention: schema, argument checks, tensors -> parameter struct,
// registration.
#include "abstract_token_attention.h"

#include <cmath>
#include <optional>
#include <tuple>

#include "../common/launch.h"
#include "../common/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "abstract_token_attention(Tensor qkv, Tensor token, int window, float scale,"
      " Tensor? pad_kv) -> (Tensor out, Tensor summary, Tensor lse)");
  m.def(
      "abstract_token_attention_backward(Tensor grad_out, Tensor grad_summary, Tensor qkv,"
      " Tensor token, Tensor? pad_kv, Tensor out, Tensor summary, Tensor lse, Tensor? dq_extra,"
      " int window, float scale, bool need_qkv, bool need_token, bool need_pad_kv)"
      " -> (Tensor grad_qkv, Tensor grad_token, Tensor grad_pad_kv)");
}

namespace hybrid {
namespace {

constexpr const char* kOp = "abstract_token_attention";

using Params = AbstractTokenAttentionParams;
using Optional = std::optional<Tensor>;
using Tensors = std::tuple<Tensor, Tensor, Tensor>;

void check_parameter(const char* name, const Tensor& t, const Tensor& qkv, int64_t parts,
                     const char* meaning) {
  check_shape(kOp, name, t, {parts, qkv.size(4), qkv.size(5)}, meaning);
  check_dtype(kOp, name, t, accumulate_type(qkv.scalar_type()));
  check_same_device(kOp, name, t, "qkv", qkv);
}

Params checked_params(const Tensor& qkv, const Tensor& token, int64_t window, double scale,
                      const Optional& pad_kv) {
  check(qkv.dim() == 6 && qkv.size(3) == 3, kOp, ": qkv has shape ", shape_text(qkv),
        "; expected (B, H, W, 3, heads, head width)");
  Params p{};
  p.dtype = dtype_of(kOp, "qkv", qkv);
  check(qkv.size(4) >= 1, kOp, ": qkv has no heads, shape ", shape_text(qkv));
  check(qkv.size(5) >= 1 && qkv.size(5) <= kMaxHeadDim, kOp, ": qkv has head width ", qkv.size(5),
        "; expected 1 to ", kMaxHeadDim);
  check_parameter("token", token, qkv, 3, "(3, heads, head width)");
  check(window >= 1 && window <= kMaxWindow, kOp, ": window = ", window, "; expected 1 to ",
        kMaxWindow);
  check(std::isfinite(scale), kOp, ": scale = ", scale, "; expected a finite number");
  if (pad_kv) check_parameter("pad_kv", *pad_kv, qkv, 2, "(2, heads, head width)");
  p.B = qkv.size(0);
  p.H = qkv.size(1);
  p.W = qkv.size(2);
  p.h = static_cast<int32_t>(qkv.size(4));
  p.d = static_cast<int32_t>(qkv.size(5));
  p.P = static_cast<int32_t>(window);
  p.scale = scale;
  return p;
}

bool is_empty(const Params& p) { return p.B == 0 || p.H == 0 || p.W == 0; }
int64_t windows(const Params& p) { return window_rows(p) * window_cols(p); }

std::vector<int64_t> map_shape(const Params& p) { return {p.B, p.H, p.W, p.h, p.d}; }
std::vector<int64_t> summary_shape(const Params& p) { return {p.B, windows(p), p.h, p.d}; }
std::vector<int64_t> lse_shape(const Params& p) {
  return {p.B, windows(p), p.h, 1 + int64_t{p.P} * p.P};
}

// The tensors that a launch reads, kept alive until it returns. The kernels read token and pad_kv
// in qkv's dtype.
class Inputs {
 public:
  Inputs(Params& p, const Tensor& qkv, const Tensor& token, const Optional& pad_kv) {
    add(p.qkv, p.qkv_stride, qkv);
    p.token = dense(torch::stable::to(token, qkv.scalar_type()));
    if (pad_kv) p.pad_kv = dense(torch::stable::to(*pad_kv, qkv.scalar_type()));
  }

  template <size_t N>
  void add(const void*& data, int64_t (&stride)[N], const Tensor& any) {
    const Tensor& t = kept_.emplace_back(unit_last_stride(any));
    data = t.const_data_ptr();
    copy_strides(t, stride);
  }
  void* dense(const Tensor& any) {
    return kept_.emplace_back(torch::stable::contiguous(any)).mutable_data_ptr();
  }

 private:
  std::vector<Tensor> kept_;
};

template <class Launch>
Tensors forward(const Tensor& qkv, const Tensor& token, int64_t window, double scale,
                const Optional& pad_kv, const Launch& launch) {
  Params p = checked_params(qkv, token, window, scale, pad_kv);
  const ScalarType type = qkv.scalar_type();
  Tensor out = empty_like_type(qkv, map_shape(p), type);
  Tensor summary = empty_like_type(qkv, summary_shape(p), type);
  Tensor lse = empty_like_type(qkv, lse_shape(p), accumulate_type(type));
  if (is_empty(p)) return {out, summary, lse};
  const Inputs inputs(p, qkv, token, pad_kv);
  p.out = out.mutable_data_ptr();
  p.summary = summary.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();
  launch(p);
  return {out, summary, lse};
}

void check_like_map(const Params& p, const char* name, const Tensor& t, const Tensor& qkv) {
  check_shape(kOp, name, t, map_shape(p), "(B, H, W, heads, head width)");
  check_dtype(kOp, name, t, qkv.scalar_type());
  check_same_device(kOp, name, t, "qkv", qkv);
}

void check_backward(const Params& p, const Tensor& grad_out, const Tensor& grad_summary,
                    const Tensor& qkv, const Tensor& out, const Tensor& summary, const Tensor& lse,
                    const Optional& dq_extra) {
  check_like_map(p, "grad_out", grad_out, qkv);
  check_like_map(p, "out", out, qkv);
  if (dq_extra) check_like_map(p, "dq_extra", *dq_extra, qkv);
  for (const auto& [name, t] : {std::pair{"grad_summary", &grad_summary}, {"summary", &summary}}) {
    check_shape(kOp, name, *t, summary_shape(p), "(B, windows, heads, head width)");
    check_dtype(kOp, name, *t, qkv.scalar_type());
    check_same_device(kOp, name, *t, "qkv", qkv);
  }
  check_shape(kOp, "lse", lse, lse_shape(p), "(B, windows, heads, 1 + window^2)");
  check_dtype(kOp, "lse", lse, accumulate_type(qkv.scalar_type()));
  check_same_device(kOp, "lse", lse, "qkv", qkv);
}

// A gradient that is not needed has no elements; on an empty map it is zero.
Tensor gradient_or_zeros(const Params& p, const Tensor& qkv, bool needed,
                         const std::vector<int64_t>& shape, ScalarType type, void*& data) {
  Tensor grad = new_gradient(qkv, needed, shape, type, data);
  if (needed && is_empty(p)) torch::stable::zero_(grad);
  return grad;
}

template <class WorkspaceBytes, class Launch>
Tensors backward(const Tensor& grad_out, const Tensor& grad_summary, const Tensor& qkv,
                 const Tensor& token, const Optional& pad_kv, const Tensor& out,
                 const Tensor& summary, const Tensor& lse, const Optional& dq_extra, int64_t window,
                 double scale, bool need_qkv, bool need_token, bool need_pad_kv,
                 const WorkspaceBytes& workspace_bytes, const Launch& launch) {
  Params p = checked_params(qkv, token, window, scale, pad_kv);
  check_backward(p, grad_out, grad_summary, qkv, out, summary, lse, dq_extra);
  const ScalarType type = qkv.scalar_type(), sums = accumulate_type(type);
  Tensors grads{
      gradient_or_zeros(p, qkv, need_qkv, {p.B, p.H, p.W, 3, p.h, p.d}, type, p.grad_qkv),
      gradient_or_zeros(p, qkv, need_token, {3, p.h, p.d}, sums, p.grad_token),
      gradient_or_zeros(p, qkv, need_pad_kv && pad_kv, {2, p.h, p.d}, sums, p.grad_pad_kv)};
  if (is_empty(p) || !(p.grad_qkv || p.grad_token || p.grad_pad_kv)) return grads;
  Inputs inputs(p, qkv, token, pad_kv);
  inputs.add(p.grad_out, p.grad_out_stride, grad_out);
  inputs.add(p.grad_summary, p.grad_summary_stride, grad_summary);
  if (dq_extra) inputs.add(p.dq_extra, p.dq_extra_stride, *dq_extra);
  p.out = inputs.dense(out);
  p.summary = inputs.dense(summary);
  p.lse = inputs.dense(lse);
  const Tensor workspace = new_workspace(qkv, workspace_bytes(p), p.workspace);
  launch(p);
  return grads;
}

#if !defined(HYBRID_HOST_EMULATOR)

Tensors forward_cpu(Tensor qkv, Tensor token, int64_t window, double scale, Optional pad_kv) {
  return forward(qkv, token, window, scale, pad_kv, [](const Params& p) {
    const auto& kernels = cpu_table<AbstractTokenAttentionCpu>();
    torch::stable::parallel_for(0, kernels.chunks(p), 1, [&](int64_t begin, int64_t end) {
      kernels.forward(p, begin, end);
    });
  });
}

Tensors backward_cpu(Tensor grad_out, Tensor grad_summary, Tensor qkv, Tensor token,
                     Optional pad_kv, Tensor out, Tensor summary, Tensor lse, Optional dq_extra,
                     int64_t window, double scale, bool need_qkv, bool need_token,
                     bool need_pad_kv) {
  const auto& kernels = cpu_table<AbstractTokenAttentionCpu>();
  return backward(
      grad_out, grad_summary, qkv, token, pad_kv, out, summary, lse, dq_extra, window, scale,
      need_qkv, need_token, need_pad_kv, kernels.workspace_bytes, [&](const Params& p) {
        torch::stable::parallel_for(0, kernels.chunks(p), 1, [&](int64_t begin, int64_t end) {
          kernels.backward(p, begin, end);
        });
        kernels.reduce(p);
      });
}

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

Tensors forward_cuda(Tensor qkv, Tensor token, int64_t window, double scale, Optional pad_kv) {
  check_cuda_dtype(kOp, "qkv", qkv);
  return forward(qkv, token, window, scale, pad_kv, [&](const Params& p) {
    launch_on_device_of(
        kOp, qkv, [&](void* stream) { return hk_abstract_token_attention_forward(&p, stream); });
  });
}

Tensors backward_cuda(Tensor grad_out, Tensor grad_summary, Tensor qkv, Tensor token,
                      Optional pad_kv, Tensor out, Tensor summary, Tensor lse, Optional dq_extra,
                      int64_t window, double scale, bool need_qkv, bool need_token,
                      bool need_pad_kv) {
  check_cuda_dtype(kOp, "qkv", qkv);
  return backward(
      grad_out, grad_summary, qkv, token, pad_kv, out, summary, lse, dq_extra, window, scale,
      need_qkv, need_token, need_pad_kv,
      [](const Params& p) { return hk_abstract_token_attention_workspace_bytes(&p); },
      [&](const Params& p) {
        launch_on_device_of(kOp, qkv, [&](void* stream) {
          return hk_abstract_token_attention_backward(&p, stream);
        });
      });
}

#endif

}  // namespace
}  // namespace hybrid

#if !defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("abstract_token_attention", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("abstract_token_attention_backward", TORCH_BOX(&hybrid::backward_cpu));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("abstract_token_attention", TORCH_BOX(&hybrid::forward_cuda));
  m.impl("abstract_token_attention_backward", TORCH_BOX(&hybrid::backward_cuda));
}
#endif
