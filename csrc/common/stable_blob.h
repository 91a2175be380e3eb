// torch_from_blob of the stable ABI: a tensor over memory of our own, with a deleter.
//
// Torch has it since 2.11, while this library runs on 2.10 as well, whose headers are the ones that
// TORCH_TARGET_VERSION shows. So it is declared here, weakly: null where torch lacks it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout,
    const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* context), void* context);

namespace hybrid {

inline bool torch_makes_blobs_with_deleter() { return torch_from_blob != nullptr; }

inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i]) strides[i] = stride;
  return strides;
}

// A contiguous CPU tensor over `data`; torch calls deleter(data, nullptr) when it is done with it.
inline torch::stable::Tensor cpu_blob(void* data, const std::vector<int64_t>& sizes,
                                      torch::headeronly::ScalarType type,
                                      void (*deleter)(void*, void*)) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const std::vector<int64_t> strides = contiguous_strides(sizes);
  AtenTensorHandle handle;
  const AOTITorchError error =
      torch_from_blob(data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
                      to<int32_t>(from(type)), aoti_torch_device_type_cpu(), -1, &handle,
                      aoti_torch_layout_strided(), nullptr, 0, deleter, nullptr);
  if (error != AOTI_TORCH_SUCCESS) {
    deleter(data, nullptr);
    throw std::runtime_error("hybrid_kernels: torch made no tensor over a block of kept memory");
  }
  return torch::stable::Tensor(handle);
}

}  // namespace hybrid
