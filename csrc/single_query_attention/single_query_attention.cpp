// hybrid::single_query_attention and hybrid::single_query_pool, the same attention with tokens
// that are their own keys and values: schemas, argument checks, parameter struct, registration.
#include "single_query_attention.h"

#include <cmath>
#include <tuple>

#include "../common/indices.h"
#include "../common/launch.h"
#include "../common/two_stages.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "single_query_attention(Tensor query, Tensor k, Tensor v, float scale, Tensor? exclude)"
      " -> (Tensor out, Tensor lse)");
  m.def(
      "single_query_attention_backward(Tensor grad_out, Tensor query, Tensor k, Tensor v,"
      " Tensor out, Tensor lse, float scale, Tensor? exclude, bool need_query, bool need_k,"
      " bool need_v) -> (Tensor grad_query, Tensor grad_k, Tensor grad_v)");
  m.def(
      "single_query_pool(Tensor query, Tensor x, float scale, Tensor? exclude)"
      " -> (Tensor out, Tensor lse)");
  m.def(
      "single_query_pool_backward(Tensor grad_out, Tensor query, Tensor x, Tensor out, Tensor lse,"
      " float scale, Tensor? exclude, bool need_query, bool need_x)"
      " -> (Tensor grad_query, Tensor grad_x)");
}

namespace hybrid {
namespace {

constexpr const char *kOp = "single_query_attention", *kPool = "single_query_pool";

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
Tensor checked_exclude(const char* op, const char* name, const Tensor& exclude, const Tensor& k) {
  const int64_t images = k.size(0), tokens = k.size(1);
  check(exclude.dim() == 2 && exclude.size(0) == images, op, ": exclude has shape ",
        shape_text(exclude), "; expected (", images, ", n) = (B, excluded tokens)");
  check(exclude.size(1) < tokens || images == 0, op, ": exclude has ", exclude.size(1),
        " indices for each image of ", tokens, " tokens; expected fewer, so that a key is left");
  return checked_indices(op, "exclude", exclude, name, k, tokens);
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
    kept_.push_back(checked_exclude(kOp, "k", *exclude, k));
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

// Backend: workspaces in bytes, launches on the device of `like`. Tokens: `pool` if v is k, and the
// gradient of k that of both.
template <class Backend>
std::tuple<Tensor, Tensor> attend(const Tensor& query, const Tensor& k, const Tensor& v,
                                  double scale, const Indices& exclude, bool pool) {
  SingleQueryAttentionParams p = checked_params(query, k, v, scale);
  Backend::check_dtype(k);
  const Inputs inputs(p, query, k, v, exclude);
  Tensor out = empty_like_type(k, {p.B, p.G, p.h, p.dv}, k.scalar_type());
  Tensor lse = empty_like_type(k, {p.B, p.h, p.G}, accumulate_type(k.scalar_type()));
  if (p.B == 0) return {out, lse};
  p.values_are_keys = pool;
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();
  const Tensor workspace = new_workspace(k, Backend::forward_workspace(p), p.workspace);
  Backend::forward(p, k);
  return {out, lse};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

template <class Backend>
Gradients gradients(const Tensor& grad_out, const Tensor& query, const Tensor& k, const Tensor& v,
                    const Tensor& out, const Tensor& lse, double scale, const Indices& exclude,
                    bool need_query, bool need_k, bool need_v, bool pool) {
  SingleQueryAttentionParams p = checked_params(query, k, v, scale);
  Backend::check_dtype(k);
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
  p.values_are_keys = pool;
  p.out = out_dense.mutable_data_ptr();
  p.lse = lse_dense.mutable_data_ptr();
  const Tensor workspace = new_workspace(k, Backend::backward_workspace(p), p.workspace);
  Backend::backward(p, k);
  return {grad_query, grad_k, grad_v};
}

#if !defined(HYBRID_HOST_EMULATOR)

struct Cpu {
  static const SingleQueryAttentionCpu& kernels() { return cpu_table<SingleQueryAttentionCpu>(); }

  static void check_dtype(const Tensor&) {}
  static int64_t forward_workspace(const SingleQueryAttentionParams& p) {
    return kernels().forward_workspace(p);
  }
  static int64_t backward_workspace(const SingleQueryAttentionParams& p) {
    return kernels().backward_workspace(p);
  }
  static void forward(const SingleQueryAttentionParams& p, const Tensor&) {
    run_two_stages(
        p.B, token_blocks(p), [&](int64_t begin, int64_t end) { kernels().forward(p, begin, end); },
        [&](int64_t begin, int64_t end) { kernels().merge(p, begin, end); });
  }
  static void backward(const SingleQueryAttentionParams& p, const Tensor&) {
    torch::stable::parallel_for(0, p.B * token_blocks(p), 1, [&](int64_t begin, int64_t end) {
      kernels().backward(p, begin, end);
    });
    kernels().merge_grad(p);
  }
};

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

struct Cuda {
  static void check_dtype(const Tensor& k) { check_cuda_dtype(kOp, "k", k); }
  static int64_t forward_workspace(const SingleQueryAttentionParams& p) {
    return hk_single_query_attention_forward_workspace(&p);
  }
  static int64_t backward_workspace(const SingleQueryAttentionParams& p) {
    return hk_single_query_attention_backward_workspace(&p);
  }
  static void forward(const SingleQueryAttentionParams& p, const Tensor& like) {
    launch_on_device_of(
        kOp, like, [&](void* stream) { return hk_single_query_attention_forward(&p, stream); });
  }
  static void backward(const SingleQueryAttentionParams& p, const Tensor& like) {
    launch_on_device_of(
        kOp, like, [&](void* stream) { return hk_single_query_attention_backward(&p, stream); });
  }
};

#endif

template <class Backend>
std::tuple<Tensor, Tensor> attention(Tensor query, Tensor k, Tensor v, double scale,
                                     Indices exclude) {
  return attend<Backend>(query, k, v, scale, exclude, false);
}

template <class Backend>
Gradients attention_backward(Tensor grad_out, Tensor query, Tensor k, Tensor v, Tensor out,
                             Tensor lse, double scale, Indices exclude, bool need_query,
                             bool need_k, bool need_v) {
  return gradients<Backend>(grad_out, query, k, v, out, lse, scale, exclude, need_query, need_k,
                            need_v, false);
}

// What checked_params would find, in the words of single_query_pool.
void check_pool(const Tensor& query, const Tensor& x, const Indices& exclude) {
  check(x.dim() == 3, kPool, ": x has shape ", shape_text(x),
        "; expected 3 dimensions: (B, N, channels)");
  check(query.dim() == 2 || query.dim() == 3, kPool, ": query has shape ", shape_text(query),
        "; expected (G, channels), or (B, G, channels)");
  dtype_of(kPool, "x", x);
  const int64_t queries = query.size(query.dim() - 2), channels = x.size(2);
  check(queries >= 1 && queries <= kMaxQueries, kPool, ": query has ", queries,
        " queries; expected 1 to ", kMaxQueries);
  check(channels >= 1 && channels <= kMaxHeadDim, kPool, ": x has ", channels,
        " channels; expected 1 to ", kMaxHeadDim);
  if (query.dim() == 2)
    check_shape(kPool, "query", query, {queries, channels}, "(G, channels)");
  else
    check_shape(kPool, "query", query, {x.size(0), queries, channels}, "(B, G, channels)");
  check_dtype(kPool, "query", query, x.scalar_type());
  check_same_device(kPool, "query", query, "x", x);
  check(x.size(1) >= 1 || x.size(0) == 0, kPool, ": x holds no token, shape ", shape_text(x),
        "; expected at least one");
  if (exclude) checked_exclude(kPool, "x", *exclude, x);
}

// (.., channels) -> (.., one head, channels).
Tensor one_head(const Tensor& t) { return torch::stable::unsqueeze(t, t.dim() - 1); }

Tensor without_head(const Tensor& t) {
  return t.dim() < 3 ? t : torch::stable::squeeze(t, t.dim() - 2);  // not needed: (0,)
}

template <class Backend>
std::tuple<Tensor, Tensor> pool(Tensor query, Tensor x, double scale, Indices exclude) {
  check_pool(query, x, exclude);
  const Tensor tokens = one_head(x);
  const auto [out, lse] = attend<Backend>(one_head(query), tokens, tokens, scale, exclude, true);
  return {without_head(out), torch::stable::squeeze(lse, 1)};
}

template <class Backend>
std::tuple<Tensor, Tensor> pool_backward(Tensor grad_out, Tensor query, Tensor x, Tensor out,
                                         Tensor lse, double scale, Indices exclude, bool need_query,
                                         bool need_x) {
  check_pool(query, x, exclude);
  const Tensor tokens = one_head(x);
  const auto [grad_query, grad_x, none] = gradients<Backend>(
      one_head(grad_out), one_head(query), tokens, tokens, one_head(out),
      torch::stable::unsqueeze(lse, 1), scale, exclude, need_query, need_x, false, true);
  return {without_head(grad_query), without_head(grad_x)};
}

}  // namespace
}  // namespace hybrid

#if !defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("single_query_attention", TORCH_BOX(&hybrid::attention<hybrid::Cpu>));
  m.impl("single_query_attention_backward", TORCH_BOX(&hybrid::attention_backward<hybrid::Cpu>));
  m.impl("single_query_pool", TORCH_BOX(&hybrid::pool<hybrid::Cpu>));
  m.impl("single_query_pool_backward", TORCH_BOX(&hybrid::pool_backward<hybrid::Cpu>));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("single_query_attention", TORCH_BOX(&hybrid::attention<hybrid::Cuda>));
  m.impl("single_query_attention_backward", TORCH_BOX(&hybrid::attention_backward<hybrid::Cuda>));
  m.impl("single_query_pool", TORCH_BOX(&hybrid::pool<hybrid::Cuda>));
  m.impl("single_query_pool_backward", TORCH_BOX(&hybrid::pool_backward<hybrid::Cuda>));
}
#endif
