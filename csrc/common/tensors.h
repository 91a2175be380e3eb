// What every <op>.cpp needs to turn torch tensors into a parameter struct: checks that throw
// messages a user can act on, and reading of shapes, strides and dtypes. Torch's stable ABI only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "large_alloc.h"
#include "output_cache.h"
#include "stable_blob.h"
#include "types.h"

namespace hybrid {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws a RuntimeError in Python. Written out instead of STD_TORCH_CHECK, whose messages carry
// the source path of the machine that built the library.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// What a message says of a tuple or a tensor, put into words only when there is a message: calls
// that are right, nearly all of them, should not pay for it. Lives no longer than what it tells of.
struct TupleText {
  const int64_t* values;
  size_t count;

  friend std::ostream& operator<<(std::ostream& to, const TupleText& text) {
    to << '(';
    for (size_t i = 0; i < text.count; ++i) to << (i ? ", " : "") << text.values[i];
    return to << (text.count == 1 ? ",)" : ")");
  }
};

template <class Range>
TupleText tuple_text(const Range& values) {
  return {values.data(), values.size()};
}

inline TupleText shape_text(const Tensor& t) { return tuple_text(t.sizes()); }

inline const char* dtype_text(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    default:
      return "a dtype that is no floating point type";
  }
}

struct DeviceText {
  const Tensor& tensor;

  friend std::ostream& operator<<(std::ostream& to, const DeviceText& text) {
    if (text.tensor.is_cpu()) return to << "cpu";
    if (!text.tensor.is_cuda()) return to << "another device";
    return to << "cuda:" << text.tensor.get_device_index();
  }
};

inline DeviceText device_text(const Tensor& t) { return {t}; }

inline DType dtype_of(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      break;
  }
  check(false, op, ": ", name, " has ", dtype_text(t.scalar_type()),
        "; expected float32, bfloat16, float16 or (on CPU) float64");
  return DType::f32;
}

// The dtype of parameters, statistics and sums that belong to data of type `data`.
inline ScalarType accumulate_type(ScalarType data) {
  return data == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline size_t element_bytes(ScalarType type) {
  if (type == ScalarType::Double) return 8;
  return type == ScalarType::Float ? 4 : 2;
}

inline void check_shape(const char* op, const char* name, const Tensor& t,
                        const std::vector<int64_t>& expected, const char* meaning) {
  bool same = t.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = t.size(i) == expected[i];
  check(same, op, ": ", name, " has shape ", shape_text(t), "; expected ", tuple_text(expected),
        " = ", meaning);
}

inline void check_same_device(const char* op, const char* name, const Tensor& t,
                              const char* first_name, const Tensor& first) {
  check(t.is_cpu() == first.is_cpu() && t.get_device_index() == first.get_device_index(), op, ": ",
        name, " is on ", device_text(t), " but ", first_name, " is on ", device_text(first),
        "; move them to one device");
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType expected) {
  check(t.scalar_type() == expected, op, ": ", name, " has ", dtype_text(t.scalar_type()),
        "; expected ", dtype_text(expected), "; convert it with .to(torch.", dtype_text(expected),
        ")");
}

inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// Kernels read any strides but want the elements of the last dimension side by side.
inline Tensor unit_last_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.stride(last) == 1 || t.size(last) == 1 ? t : torch::stable::contiguous(t);
}

template <size_t N>
void copy_strides(const Tensor& t, int64_t (&strides)[N]) {
  for (size_t i = 0; i < N; ++i) strides[i] = t.stride(static_cast<int64_t>(i));
}

// torch::stable::new_empty, which looks the operator up by its name in every call, without that.
inline Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  int32_t device_type;
  AtenTensorHandle handle;
  const std::vector<int64_t> strides = contiguous_strides(sizes);
  const bool ok = aoti_torch_get_device_type(like.get(), &device_type) == AOTI_TORCH_SUCCESS &&
                  aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                           strides.data(), to<int32_t>(from(type)), device_type,
                                           like.get_device_index(), &handle) == AOTI_TORCH_SUCCESS;
  check(ok, "hybrid_kernels: torch could not allocate a tensor of shape ", tuple_text(sizes));
  return Tensor(handle);
}

// An uninitialised tensor on `like`'s device; a large one on the CPU in memory that is kept.
inline Tensor empty_like_type(const Tensor& like, const std::vector<int64_t>& sizes,
                              ScalarType type) {
  size_t bytes = element_bytes(type);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  void* block = like.is_cpu() ? take_output_block(bytes) : nullptr;
  if (block) return cpu_blob(block, sizes, type, release_output_block);
  const Tensor fresh = new_empty(like, sizes, type);
  if (fresh.is_cpu()) advise_huge_pages(fresh.mutable_data_ptr(), bytes);
  return fresh;
}

inline std::vector<int64_t> shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

// A gradient; one that is not needed has no elements.
inline Tensor new_gradient(const Tensor& like, bool needed, const std::vector<int64_t>& shape,
                           ScalarType type) {
  return empty_like_type(like, needed ? shape : std::vector<int64_t>{0}, type);
}

// The same with its place for a parameter struct, which stays null where there are no elements.
inline Tensor new_gradient(const Tensor& like, bool needed, const std::vector<int64_t>& shape,
                           ScalarType type, void*& data) {
  Tensor grad = new_gradient(like, needed, shape, type);
  if (needed && grad.numel()) data = grad.mutable_data_ptr();
  return grad;
}

inline Tensor new_gradient(const Tensor& like, bool needed, void*& data) {
  return new_gradient(like, needed, shape_of(like), like.scalar_type(), data);
}

// Memory for a launch; no bytes are null.
inline Tensor new_workspace(const Tensor& like, int64_t bytes, void*& data) {
  const Tensor workspace = empty_like_type(like, {ceil_div<int64_t>(bytes, 4)}, ScalarType::Float);
  data = bytes ? workspace.mutable_data_ptr() : nullptr;
  return workspace;
}

}  // namespace hybrid
