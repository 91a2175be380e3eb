// hybrid::pool_cat: schema, argument checks, tensors -> parameter struct, CPU registration. On CUDA
// tensors the op is served by Triton.
#include "pool_cat.h"

#include "../common/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("pool_cat(Tensor[] xs, SymInt height, SymInt width) -> Tensor");
  m.def(
      "pool_cat_backward(Tensor grad, Tensor[] xs, SymInt height, SymInt width, bool[] need_xs)"
      " -> Tensor[]");
}

#if !defined(HYBRID_HOST_EMULATOR)

namespace hybrid {
namespace {

constexpr const char* kOp = "pool_cat";

using Maps = std::vector<Tensor>;

// Channels of all maps together.
int64_t check_maps(const Maps& xs, int64_t height, int64_t width) {
  check(!xs.empty() && xs.size() <= kMaxPooledMaps, kOp, ": xs has ", xs.size(),
        " maps; expected 1 to ", kMaxPooledMaps, "; join further ones with torch.cat");
  int64_t channels = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    const Tensor& x = xs[i];
    const std::string name = "xs[" + std::to_string(i) + "]";
    check(x.dim() == 4 && x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, kOp, ": ", name,
          " has shape ", shape_text(x), "; expected (B, H, W, C) with H, W and C at least 1");
    check(x.size(0) == xs[0].size(0), kOp, ": ", name, " has shape ", shape_text(x),
          "; expected a batch of ", xs[0].size(0), ", as xs[0]");
    dtype_of(kOp, name.c_str(), x);
    check_dtype(kOp, name.c_str(), x, xs[0].scalar_type());
    check_same_device(kOp, name.c_str(), x, "xs[0]", xs[0]);
    channels += x.size(3);
  }
  check(height >= 1, kOp, ": height = ", height, "; expected 1 or more");
  check(width >= 1, kOp, ": width = ", width, "; expected 1 or more");
  return channels;
}

// A side of a task, with channels from `first` on; maps without unit stride were copied before.
PoolSide side(const Tensor& t, int64_t first, void* data) {
  PoolSide s{};
  s.data = static_cast<char*>(data) + first * element_bytes(t.scalar_type());
  copy_strides(t, s.stride);
  s.H = t.size(1);
  s.W = t.size(2);
  return s;
}

PoolSide read_side(const Tensor& t, int64_t first = 0) {
  return side(t, first, const_cast<void*>(t.const_data_ptr()));
}

PoolSide write_side(const Tensor& t, int64_t first = 0) {
  return side(t, first, t.mutable_data_ptr());
}

void add_task(PoolCatParams& p, const PoolSide& source, const PoolSide& target, int64_t channels) {
  p.task[p.tasks++] = {source, target, channels};
  if (target.H > p.parts) p.parts = target.H;
}

void launch_cpu(const PoolCatParams& p) {
  const PoolCatCpu& kernels = cpu_table<PoolCatCpu>();
  torch::stable::parallel_for(0, p.B * p.parts, 1,
                              [&](int64_t begin, int64_t end) { kernels.compute(p, begin, end); });
}

Tensor forward_cpu(Maps xs, int64_t height, int64_t width) {
  const int64_t channels = check_maps(xs, height, width), B = xs[0].size(0);
  Tensor y = empty_like_type(xs[0], {B, height, width, channels}, xs[0].scalar_type());
  if (y.numel() == 0) return y;
  PoolCatParams p{dtype_of(kOp, "xs[0]", xs[0]), B};
  int64_t first = 0;
  for (Tensor& x : xs) {
    x = unit_last_stride(x);
    add_task(p, read_side(x), write_side(y, first), x.size(3));
    first += x.size(3);
  }
  launch_cpu(p);
  return y;
}

Maps backward_cpu(Tensor grad, Maps xs, int64_t height, int64_t width, std::vector<bool> need_xs) {
  const int64_t channels = check_maps(xs, height, width), B = xs[0].size(0);
  const ScalarType type = xs[0].scalar_type();
  check_shape(kOp, "grad", grad, {B, height, width, channels}, "(B, height, width, channels)");
  check_dtype(kOp, "grad", grad, type);
  check_same_device(kOp, "grad", grad, "xs[0]", xs[0]);
  check(need_xs.size() == xs.size(), kOp, "_backward: need_xs has ", need_xs.size(),
        " entries; expected one for each of the ", xs.size(), " maps");
  grad = unit_last_stride(grad);
  PoolCatParams p{dtype_of(kOp, "grad", grad), B};
  p.is_backward = true;
  Maps grads;
  int64_t first = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    const Tensor& x = xs[i];
    const std::vector<int64_t> shape{B, x.size(1), x.size(2), x.size(3)};
    grads.push_back(empty_like_type(x, need_xs[i] ? shape : std::vector<int64_t>{0}, type));
    if (need_xs[i]) add_task(p, read_side(grad, first), write_side(grads[i]), x.size(3));
    first += x.size(3);
  }
  if (B && p.tasks) launch_cpu(p);
  return grads;
}

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("pool_cat", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("pool_cat_backward", TORCH_BOX(&hybrid::backward_cpu));
}

#endif
