// hybrid::partial_combine: schema, argument checks, tensors -> parameter struct, CPU registration.
// On CUDA tensors the op is served by Triton.
#include "partial_combine.h"

#include <tuple>

#include "../common/indices.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("partial_combine(Tensor x, Tensor update, Tensor foreground, Tensor index) -> Tensor");
  m.def(
      "partial_combine_backward(Tensor grad, Tensor index, bool need_x, bool need_update,"
      " bool need_foreground) -> (Tensor grad_x, Tensor grad_update, Tensor grad_foreground)");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "partial_combine";

PartialCombineParams checked_params(const char* name, const Tensor& x, const Tensor& index) {
  check(x.dim() == 3, kOp, ": ", name, " has shape ", shape_text(x),
        "; expected 3 dimensions: (B, N, C)");
  PartialCombineParams p{};
  p.dtype = dtype_of(kOp, name, x);
  p.B = x.size(0);
  p.N = x.size(1);
  p.C = x.size(2);
  p.n = index.dim() == 2 ? index.size(1) : 0;
  check(index.dim() == 2 && index.size(0) == p.B && p.n >= 1 && p.n <= p.N, kOp,
        ": index has shape ", shape_text(index), "; expected (", p.B,
        ", n) = (B, foreground tokens)", " with 1 <= n <= ", p.N);
  return p;
}

void check_like_x(const char* name, const Tensor& t, const std::vector<int64_t>& shape,
                  const char* meaning, const Tensor& x) {
  check_shape(kOp, name, t, shape, meaning);
  check_dtype(kOp, name, t, x.scalar_type());
  check_same_device(kOp, name, t, "x", x);
}

bool is_empty(const PartialCombineParams& p) { return p.B == 0 || p.C == 0; }

// The tensors that a kernel reads, kept alive until it returns.
class Inputs {
 public:
  void add(TokenMap& map, const Tensor& any) {
    const Tensor& t = kept_.emplace_back(unit_last_stride(any));
    map.data = t.const_data_ptr();
    copy_strides(t, map.stride);
  }

  void add(const void*& data, const Tensor& any) {
    data = kept_.emplace_back(torch::stable::contiguous(any)).const_data_ptr();
  }

  // The inverse of index: so every chunk of tokens finds its own without a search.
  void add_places(PartialCombineParams& p, const char* name, const Tensor& x, const Tensor& index) {
    const Tensor dense = checked_indices(kOp, "index", index, name, x, p.N);
    const int64_t* tokens = static_cast<const int64_t*>(dense.const_data_ptr());
    const Tensor& t = kept_.emplace_back(empty_like_type(x, {p.B, p.N}, ScalarType::Int));
    int32_t* places = static_cast<int32_t*>(t.mutable_data_ptr());
    for (int64_t i = 0; i < p.B * p.N; ++i) places[i] = -1;
    for (int64_t i = 0; i < p.B * p.n; ++i) {
      int32_t& place = places[i / p.n * p.N + tokens[i]];
      check(place < 0, kOp, ": index holds ", tokens[i], " twice for image ", i / p.n,
            "; expected distinct tokens");
      place = static_cast<int32_t>(i % p.n);
    }
    p.places = places;
  }

 private:
  std::vector<Tensor> kept_;
};

template <class Kernel>
void for_chunks(const PartialCombineParams& p, const Kernel& kernel) {
  torch::stable::parallel_for(0, p.B * combine_pieces(p), 1,
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

Tensor forward_cpu(Tensor x, Tensor update, Tensor foreground, Tensor index) {
  PartialCombineParams p = checked_params("x", x, index);
  check_like_x("update", update, {p.B, p.C}, "(B, C)", x);
  check_like_x("foreground", foreground, {p.B, p.n, p.C}, "(B, n, C)", x);
  const Tensor out = empty_like_type(x, {p.B, p.N, p.C}, x.scalar_type());
  if (is_empty(p)) return out;
  Inputs inputs;
  inputs.add_places(p, "x", x, index);
  inputs.add(p.x, x);
  inputs.add(p.update, update);
  inputs.add(p.foreground, foreground);
  p.out = out.mutable_data_ptr();
  for_chunks(p, cpu_table<PartialCombineCpu>().forward);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(Tensor grad, Tensor index, bool need_x,
                                                bool need_update, bool need_foreground) {
  PartialCombineParams p = checked_params("grad", grad, index);
  const ScalarType type = grad.scalar_type();
  std::tuple gradients{
      new_gradient(grad, need_x, {p.B, p.N, p.C}, type, p.grad_x),
      new_gradient(grad, need_update, {p.B, p.C}, type, p.grad_update),
      new_gradient(grad, need_foreground, {p.B, p.n, p.C}, type, p.grad_foreground)};
  if (is_empty(p)) return gradients;
  Inputs inputs;
  inputs.add_places(p, "grad", grad, index);
  inputs.add(p.grad, grad);
  const PartialCombineCpu& kernels = cpu_table<PartialCombineCpu>();
  const Tensor workspace = new_workspace(grad, kernels.workspace_bytes(p), p.workspace);
  for_chunks(p, kernels.backward);
  if (need_update) kernels.reduce(p);
  return gradients;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("partial_combine", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("partial_combine_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
