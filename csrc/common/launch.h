// From a torch tensor to a CUDA launch: device guard, current stream, error check. The one library
// holds CPU and CUDA code and must load on a torch without CUDA, so the stream is looked up in
// libtorch_cuda at run time instead of being linked.
#pragma once

#include "tensors.h"

#if defined(HYBRID_HOST_EMULATOR)
// The host emulator runs the launchers on CPU tensors, and they stand in for the CUDA kernels.
#define HYBRID_CUDA_KEY CPU
extern "C" const char* hybrid_emulator_error();
#else
#define HYBRID_CUDA_KEY CUDA
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace hybrid {

// What CUDA kernels cannot serve.
inline void check_cuda_dtype(const char* op, const char* name, const Tensor& t) {
  check(t.scalar_type() != ScalarType::Double, op, ": ", name,
        " has float64, which only the CPU and reference backends compute; convert it, or use "
        "hybrid_kernels.use_backend('reference')");
}

#if defined(HYBRID_HOST_EMULATOR)

template <class Launch>
void launch_on_device_of(const char* op, const Tensor&, const Launch& launch) {
  const int error = launch(nullptr);
  check(error == 0, op, ": the emulated launch failed (", error, "): ", hybrid_emulator_error());
}

#else

inline void* current_cuda_stream(int32_t device) {
  using GetStream = int32_t (*)(int32_t, void**);
  static const GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return reinterpret_cast<GetStream>(
        library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  void* stream = nullptr;
  check(get_stream && get_stream(device, &stream) == 0,
        "hybrid_kernels: no current CUDA stream for device ", device,
        "; is this torch built with CUDA?");
  return stream;
}

// launch(stream) -> cudaError_t as int, run on the device and the current stream of `tensor`.
template <class Launch>
void launch_on_device_of(const char* op, const Tensor& tensor, const Launch& launch) {
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int error = launch(current_cuda_stream(device));
  check(error == 0, op, ": the CUDA launch failed with cudaError_t ", error,
        "; was hybrid_kernels built for this GPU's architecture? `hybrid-kernels info` lists "
        "those that it was built for");
}

#endif

}  // namespace hybrid
