// hybrid::atrous_partition and atrous_merge: schemas, argument checks, tensors -> parameter struct,
// registration.
#include "atrous_partition.h"

#include <cmath>
#include <cstring>

#include "../common/float16.h"
#include "../common/launch.h"
#include "../common/tensors.h"

namespace hybrid {
namespace {

constexpr const char* kPartition = "atrous_partition";
constexpr const char* kMerge = "atrous_merge";

int32_t element_size(const char* op, const char* name, const Tensor& t) {
  switch (dtype_of(op, name, t)) {
    case DType::f64:
      return 8;
    case DType::f32:
      return 4;
    default:
      return 2;
  }
}

template <class T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

constexpr double largest_value(DType type) {
  switch (type) {
    case DType::f16:
      return 65504;
    case DType::bf16:
      return 0x1.fep127;
    case DType::f32:
      return 0x1.fffffep127;
    default:
      return 0x1.fffffffffffffp1023;
  }
}

uint64_t fill_bits(DType type, double fill) {
  const float narrow = static_cast<float>(fill);
  switch (type) {
    case DType::f64:
      return bits_of(fill);
    case DType::f32:
      return bits_of(narrow);
    case DType::bf16:
      return from_float<bf16>(narrow).bits;
    case DType::f16:
      return from_float<f16>(narrow).bits;
  }
  return 0;
}

AtrousPartitionParams checked_params(const char* op, const char* name, const Tensor& t,
                                     int64_t window, int64_t dilation) {
  check(t.dim() == 4, op, ": ", name, " has shape ", shape_text(t),
        "; expected 4 dimensions: ", op == kPartition ? "(B, H, W, C)" : "(B, windows, slots, C)");
  AtrousPartitionParams p{};
  p.element_size = element_size(op, name, t);
  check(window >= 1 && window <= INT32_MAX, op, ": window = ", window, "; expected >= 1");
  check(dilation >= 1 && dilation <= INT32_MAX, op, ": dilation = ", dilation, "; expected >= 1");
  p.P = window;
  p.d = dilation;
  p.B = t.size(0);
  p.C = t.size(3);
  return p;
}

void set_map_size(AtrousPartitionParams& p, int64_t height, int64_t width) {
  p.H = height;
  p.W = width;
  p.nu = ceil_div(height, p.P * p.d);
  p.nv = ceil_div(width, p.P * p.d);
}

void set_map(AtrousPartitionParams& p, const Tensor& map) {
  p.map = map.mutable_data_ptr();
  copy_strides(map, p.map_stride);
}

void set_windows(AtrousPartitionParams& p, const Tensor& windows) {
  p.windows = windows.mutable_data_ptr();
  copy_strides(windows, p.windows_stride);
}

template <class Launch>
Tensor partition(const Tensor& x, int64_t window, int64_t dilation, double fill,
                 const Launch& launch) {
  AtrousPartitionParams p = checked_params(kPartition, "x", x, window, dilation);
  set_map_size(p, x.size(1), x.size(2));
  const DType type = dtype_of(kPartition, "x", x);
  check(!(std::isfinite(fill) && std::abs(fill) > largest_value(type)), kPartition,
        ": fill = ", fill, " is too large for ", dtype_text(x.scalar_type()), "; expected at most ",
        largest_value(type), ", or infinity");
  p.fill = fill_bits(type, fill);
  const Tensor windows =
      empty_like_type(x, {p.B, p.d * p.d * p.nu * p.nv, window * window, p.C}, x.scalar_type());
  if (windows.numel() == 0) return windows;
  set_map(p, x);
  set_windows(p, windows);
  launch(p);
  return windows;
}

template <class Launch>
Tensor merge(const Tensor& windows, int64_t height, int64_t width, int64_t window, int64_t dilation,
             const Launch& launch) {
  AtrousPartitionParams p = checked_params(kMerge, "windows", windows, window, dilation);
  check(height >= 0, kMerge, ": height = ", height, "; expected >= 0");
  check(width >= 0, kMerge, ": width = ", width, "; expected >= 0");
  set_map_size(p, height, width);
  const int64_t count = p.d * p.d * p.nu * p.nv, slots = window * window;
  check(windows.size(1) == count && windows.size(2) == slots, kMerge, ": windows has shape ",
        shape_text(windows), "; expected (B, ", count, ", ", slots, ", C) for a ", height, " x ",
        width, " map with window ", window, " and dilation ", dilation);
  const Tensor map = empty_like_type(windows, {p.B, height, width, p.C}, windows.scalar_type());
  if (map.numel() == 0) return map;
  set_map(p, map);
  set_windows(p, windows);
  launch(p);
  return map;
}

#if !defined(HYBRID_HOST_EMULATOR)

template <class Kernel>
void for_all_rows(const AtrousPartitionParams& p, Kernel kernel) {
  torch::stable::parallel_for(0, p.B * p.nu * p.P * p.d, 1,
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

Tensor partition_cpu(Tensor x, int64_t window, int64_t dilation, double fill) {
  return partition(x, window, dilation, fill, [](const AtrousPartitionParams& p) {
    for_all_rows(p, cpu_table<AtrousPartitionCpu>().partition);
  });
}

Tensor merge_cpu(Tensor windows, int64_t height, int64_t width, int64_t window, int64_t dilation) {
  return merge(windows, height, width, window, dilation, [](const AtrousPartitionParams& p) {
    for_all_rows(p, cpu_table<AtrousPartitionCpu>().merge);
  });
}

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

Tensor partition_cuda(Tensor x, int64_t window, int64_t dilation, double fill) {
  return partition(x, window, dilation, fill, [&](const AtrousPartitionParams& p) {
    launch_on_device_of(kPartition, x,
                        [&](void* stream) { return hk_atrous_partition(&p, stream); });
  });
}

Tensor merge_cuda(Tensor windows, int64_t height, int64_t width, int64_t window, int64_t dilation) {
  return merge(windows, height, width, window, dilation, [&](const AtrousPartitionParams& p) {
    launch_on_device_of(kMerge, windows, [&](void* stream) { return hk_atrous_merge(&p, stream); });
  });
}

#endif

}  // namespace
}  // namespace hybrid

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def("atrous_partition(Tensor x, int window, int dilation, float fill) -> Tensor");
  // SymInt: sizes of the partitioned map, which a compiled graph must not take for constants.
  m.def(
      "atrous_merge(Tensor windows, SymInt height, SymInt width, int window, int dilation)"
      " -> Tensor");
}

#if !defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("atrous_partition", TORCH_BOX(&hybrid::partition_cpu));
  m.impl("atrous_merge", TORCH_BOX(&hybrid::merge_cpu));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("atrous_partition", TORCH_BOX(&hybrid::partition_cuda));
  m.impl("atrous_merge", TORCH_BOX(&hybrid::merge_cuda));
}
#endif
