// hybrid::single_query_attention: schema, argument checks, tensors -> parameter struct,
// registration.
#include "single_query_attention.h"

#include <cmath>
#include <tuple>

#include "../common/indices.h"
#include "../common/launch.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "single_query_attention(Tensor query, Tensor k, Tensor v, float scale, Tensor? exclude)"
      " -> (Tensor out, Tensor lse)");
  m.def(
      "single_query_attention_backward(Tensor grad_out, Tensor query, Tensor k, Tensor v,"
      " Tensor out, Tensor lse, float scale, Tensor? exclude, bool need_query, bool need_k,"
      " bool need_v) -> (Tensor grad_query, Tensor grad_k, Tensor grad_v)");
}

namespace hybrid {
namespace {

constexpr const char* kOp = "single_query_attention";

using Indices = std::optional<Tensor>;

void check_like_k(const char* name, const Tensor& t, const Tensor& k) {
  check_dtype(kOp, name, t, k.scalar_type());
  check_same_device(kOp, name, t, "k", k);
}

void check_width(const char* name, int64_t width) {
  check(width >= 1 && width <= kMaxHeadDim, kOp, ": ", name, " has head width ", width,
        "; expected 1 to ", kMaxHeadDim);
}

// Indices as dense int64, all of them tokens.
Tensor checked_exclude(const Tensor& exclude, const Tensor& k) {
  const int64_t images = k.size(0), tokens = k.size(1);
  check(exclude.dim() == 2 && exclude.size(0) == images, kOp, ": exclude has shape ",
        shape_text(exclude), "; expected (", images, ", n) = (B, excluded tokens)");
  check(exclude.size(1) < tokens || images == 0, kOp, ": exclude has ", exclude.size(1),
        " indices for each image of ", tokens, " tokens; expected fewer, so that a key is left");
  return checked_indices(kOp, "exclude", exclude, "k", k, tokens);
}

SingleQueryAttentionParams checked_params(const Tensor& query, const Tensor& k, const Tensor& v,
                                          double scale) {
  check(k.dim() == 4, kOp, ": k has shape ", shape_text(k),
        "; expected 4 dimensions: (B, N, heads, head width)");
  check(v.dim() == 4, kOp, ": v has shape ", shape_text(v),
        "; expected 4 dimensions: (B, N, heads, value width)");
  check(query.dim() == 3 || query.dim() == 4, kOp, ": query has shape ", shape_text(query),
        "; expected (G, heads, head width), or (B, G, heads, head width)");
  SingleQueryAttentionParams p{};
  p.dtype = dtype_of(kOp, "k", k);
  p.B = k.size(0);
  p.N = k.size(1);
  p.h = static_cast<int32_t>(k.size(2));
  p.shared = query.dim() == 3;
  const int64_t queries = query.size(p.shared ? 0 : 1);
  check(queries >= 1 && queries <= kMaxQueries, kOp, ": query has ", queries,
        " queries; expected 1 to ", kMaxQueries, "; use multiscale_attention for more");
  p.G = static_cast<int32_t>(queries);
  check(p.h >= 1, kOp, ": k has no heads, shape ", shape_text(k));
  check_width("k", k.size(3));
  check_width("v", v.size(3));
  p.d = static_cast<int32_t>(k.size(3));
  p.dv = static_cast<int32_t>(v.size(3));
  check_shape(kOp, "v", v, {p.B, p.N, p.h, p.dv}, "(B, N, heads, value width)");
  if (p.shared)
    check_shape(kOp, "query", query, {p.G, p.h, p.d}, "(G, heads, head width)");
  else
    check_shape(kOp, "query", query, {p.B, p.G, p.h, p.d}, "(B, G, heads, head width)");
  check_like_k("query", query, k);
  check_like_k("v", v, k);
  check(p.N >= 1 || p.B == 0, kOp, ": k holds no key, shape ", shape_text(k),
        "; expected at least one token");
  check(std::isfinite(scale), kOp, ": scale = ", scale, "; expected a finite number");
  p.scale = scale;
  return p;
}

// The tensors that a launch reads, kept alive until it returns.
class Inputs {
 public:
  Inputs(SingleQueryAttentionParams& p, const Tensor& query, const Tensor& k, const Tensor& v,
         const Indices& exclude) {
    const Tensor& q = keep(query);
    p.query.data = q.const_data_ptr();
    const int64_t first = p.shared ? 0 : 1;
    p.query.stride[0] = p.shared ? 0 : q.stride(0);
    p.query.stride[1] = q.stride(first);
    p.query.stride[2] = q.stride(first + 1);
    add(p.k, k);
    add(p.v, v);
    if (!exclude) return;
    kept_.push_back(checked_exclude(*exclude, k));
    p.exclude = static_cast<const int64_t*>(kept_.back().const_data_ptr());
    p.excluded = kept_.back().size(1);
  }

  void add(AttentionTokens& tokens, const Tensor& any) {
    const Tensor& t = keep(any);
    tokens.data = t.const_data_ptr();
    copy_strides(t, tokens.stride);
  }

 private:
  const Tensor& keep(const Tensor& any) { return kept_.emplace_back(unit_last_stride(any)); }

  std::vector<Tensor> kept_;
};

Tensor new_workspace(const Tensor& like, int64_t bytes, void*& data) {
  Tensor workspace = empty_like_type(like, {ceil_div<int64_t>(bytes, 4)}, ScalarType::Float);
  data = workspace.mutable_data_ptr();
  return workspace;
}

template <class WorkspaceBytes, class Launch>
std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& k, const Tensor& v,
                                   double scale, const Indices& exclude,
                                   const WorkspaceBytes& workspace_bytes, const Launch& launch) {
  SingleQueryAttentionParams p = checked_params(query, k, v, scale);
  const Inputs inputs(p, query, k, v, exclude);
  Tensor out = empty_like_type(k, {p.B, p.G, p.h, p.dv}, k.scalar_type());
  Tensor lse = empty_like_type(k, {p.B, p.h, p.G}, accumulate_type(k.scalar_type()));
  if (p.B == 0) return {out, lse};
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();
  const Tensor workspace = new_workspace(k, workspace_bytes(p), p.workspace);
  launch(p);
  return {out, lse};
}

Tensor new_gradient(const Tensor& like, bool needed, void*& data) {
  const auto sizes = like.sizes();
  const std::vector<int64_t> shape(sizes.begin(), sizes.end());
  Tensor grad = empty_like_type(like, needed ? shape : std::vector<int64_t>{0}, like.scalar_type());
  if (needed && grad.numel()) data = grad.mutable_data_ptr();
  return grad;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

template <class WorkspaceBytes, class Launch>
Gradients backward(const Tensor& grad_out, const Tensor& query, const Tensor& k, const Tensor& v,
                   const Tensor& out, const Tensor& lse, double scale, const Indices& exclude,
                   bool need_query, bool need_k, bool need_v, const WorkspaceBytes& workspace_bytes,
                   const Launch& launch) {
  SingleQueryAttentionParams p = checked_params(query, k, v, scale);
  for (const auto& [name, tensor] : {std::pair{"grad_out", &grad_out}, {"out", &out}}) {
    check_shape(kOp, name, *tensor, {p.B, p.G, p.h, p.dv}, "(B, G, heads, value width)");
    check_like_k(name, *tensor, k);
  }
  check_shape(kOp, "lse", lse, {p.B, p.h, p.G}, "(B, heads, G)");
  check_dtype(kOp, "lse", lse, accumulate_type(k.scalar_type()));
  Inputs inputs(p, query, k, v, exclude);
  Tensor grad_query = new_gradient(query, need_query, p.grad_query);
  Tensor grad_k = new_gradient(k, need_k, p.grad_k), grad_v = new_gradient(v, need_v, p.grad_v);
  if (p.B == 0 && need_query) torch::stable::zero_(grad_query);
  if (p.B == 0 || !(need_query || need_k || need_v)) return {grad_query, grad_k, grad_v};
  inputs.add(p.grad_out, grad_out);
  const Tensor out_dense = torch::stable::contiguous(out);
  const Tensor lse_dense = torch::stable::contiguous(lse);
  p.out = out_dense.mutable_data_ptr();
  p.lse = lse_dense.mutable_data_ptr();
  const Tensor workspace = new_workspace(k, workspace_bytes(p), p.workspace);
  launch(p);
  return {grad_query, grad_k, grad_v};
}

#if !defined(HYBRID_HOST_EMULATOR)

std::tuple<Tensor, Tensor> forward_cpu(Tensor query, Tensor k, Tensor v, double scale,
                                       Indices exclude) {
  const auto& kernels = cpu_table<SingleQueryAttentionCpu>();
  return forward(query, k, v, scale, exclude, kernels.forward_workspace,
                 [&](const SingleQueryAttentionParams& p) {
                   torch::stable::parallel_for(
                       0, p.B * token_blocks(p), 1,
                       [&](int64_t begin, int64_t end) { kernels.forward(p, begin, end); });
                   torch::stable::parallel_for(0, p.B, 1, [&](int64_t begin, int64_t end) {
                     kernels.merge(p, begin, end);
                   });
                 });
}

Gradients backward_cpu(Tensor grad_out, Tensor query, Tensor k, Tensor v, Tensor out, Tensor lse,
                       double scale, Indices exclude, bool need_query, bool need_k, bool need_v) {
  const auto& kernels = cpu_table<SingleQueryAttentionCpu>();
  return backward(grad_out, query, k, v, out, lse, scale, exclude, need_query, need_k, need_v,
                  kernels.backward_workspace, [&](const SingleQueryAttentionParams& p) {
                    torch::stable::parallel_for(
                        0, p.B * token_blocks(p), 1,
                        [&](int64_t begin, int64_t end) { kernels.backward(p, begin, end); });
                    kernels.merge_grad(p);
                  });
}

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

void check_cuda_dtype(const Tensor& k) {
  check(k.scalar_type() != ScalarType::Double, kOp,
        ": k has float64, which only the CPU and reference backends compute; convert it, or use "
        "hybrid_kernels.use_backend('reference')");
}

std::tuple<Tensor, Tensor> forward_cuda(Tensor query, Tensor k, Tensor v, double scale,
                                        Indices exclude) {
  check_cuda_dtype(k);
  return forward(
      query, k, v, scale, exclude,
      [](const SingleQueryAttentionParams& p) {
        return hk_single_query_attention_forward_workspace(&p);
      },
      [&](const SingleQueryAttentionParams& p) {
        launch_on_device_of(
            kOp, k, [&](void* stream) { return hk_single_query_attention_forward(&p, stream); });
      });
}

Gradients backward_cuda(Tensor grad_out, Tensor query, Tensor k, Tensor v, Tensor out, Tensor lse,
                        double scale, Indices exclude, bool need_query, bool need_k, bool need_v) {
  check_cuda_dtype(k);
  return backward(
      grad_out, query, k, v, out, lse, scale, exclude, need_query, need_k, need_v,
      [](const SingleQueryAttentionParams& p) {
        return hk_single_query_attention_backward_workspace(&p);
      },
      [&](const SingleQueryAttentionParams& p) {
        launch_on_device_of(
            kOp, k, [&](void* stream) { return hk_single_query_attention_backward(&p, stream); });
      });
}

#endif

}  // namespace
}  // namespace hybrid

#if !defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("single_query_attention", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("single_query_attention_backward", TORCH_BOX(&hybrid::backward_cpu));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("single_query_attention", TORCH_BOX(&hybrid::forward_cuda));
  m.impl("single_query_attention_backward", TORCH_BOX(&hybrid::backward_cuda));
}
#endif
