// CUDA's device language for an ordinary C++ compiler: csrc/common/device.h includes this file
// where nvcc would bring its own. Kernels run on the CPU, one fiber per CUDA thread; README.md
// tells what that finds and what it cannot.
#pragma once

// The real CUDA headers work in plain C++: vector types, __half and __nv_bfloat16 arithmetic.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "atomics.h"
#include "intrinsics.h"
#include "ptx.h"
#include "runtime.h"
#include "warp.h"

#define threadIdx (::hybrid::emulator::indices.thread)
#define blockIdx (::hybrid::emulator::indices.block)
#define blockDim (::hybrid::emulator::indices.block_dim)
#define gridDim (::hybrid::emulator::indices.grid_dim)
#define warpSize 32

// A plain __shared__ would become an array per thread: make it an error that names the way out.
#undef __shared__
#define __shared__ _Pragma("GCC error \"write HYBRID_SHARED or HYBRID_DYN_SMEM\"")
// Forced inlining costs nothing on a GPU; here it makes AddressSanitizer builds six times slower.
#undef __forceinline__
#define __forceinline__ inline
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

#define HYBRID_UNPAREN(...) __VA_ARGS__

// The address of `name##_key` tells this array from all others of the block.
#define HYBRID_SHARED(T, name, dims)                                                        \
  using name##_shared_t = T dims;                                                           \
  static char name##_key;                                                                   \
  name##_shared_t& name = *static_cast<name##_shared_t*>(::hybrid::emulator::static_shared( \
      &name##_key, sizeof(name##_shared_t), alignof(name##_shared_t)))
#define HYBRID_DYN_SMEM(name) \
  unsigned char* const name = static_cast<unsigned char*>(::hybrid::emulator::dynamic_shared())

#define HYBRID_LAUNCH(kernel, grid, block, smem, stream, ...)                               \
  (static_cast<void>(stream),                                                               \
   ::hybrid::emulator::launch(reinterpret_cast<const void*>(HYBRID_UNPAREN kernel), (grid), \
                              (block), (smem), [&] { (HYBRID_UNPAREN kernel)(__VA_ARGS__); }))
#define HYBRID_SMEM_OPT_IN(kernel, bytes)                                                        \
  ::hybrid::emulator::shared_memory_opt_in(reinterpret_cast<const void*>(HYBRID_UNPAREN kernel), \
                                           (bytes))
