// Atrous window partition and its inverse on CUDA: two gathers of whole units, a unit being one
// element or, where channels are contiguous and everything is aligned, 16 bytes of them. Each
// follows what it writes: partition the slots of the windows, merge the pixels of the map, so that
// every value is written once and neighbouring threads write neighbouring units.
//
// A block is a strip of `units` threads along the channels by kThreads / units positions; it walks
// over positions by grid stride, in the x dimension alone, so that no size is too large.
#include "../common/cuda_grid.cuh"
#include "atrous_partition.h"

namespace hybrid {
namespace {

constexpr int kThreads = 256;
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

// Positions in the map and in the windows that belong together.
struct Pair {
  int64_t image, row, col;  // of the map
  int64_t window, slot;
};

__device__ __forceinline__ Pair of_slot(const AtrousPartitionParams& p, uint64_t position) {
  const uint64_t P = p.P, d = p.d, slots = P * P, windows = d * d * p.nu * p.nv;
  Pair at;
  at.slot = position % slots;
  const uint64_t rest = position / slots;
  at.window = rest % windows;
  at.image = rest / windows;
  const uint64_t v = at.window % p.nv, u = at.window / p.nv % p.nu;
  const uint64_t phase = at.window / (p.nu * p.nv);
  at.row = (u * P + at.slot / P) * d + phase / d;
  at.col = (v * P + at.slot % P) * d + phase % d;
  return at;
}

__device__ __forceinline__ Pair of_pixel(const AtrousPartitionParams& p, uint64_t position) {
  const uint64_t P = p.P, d = p.d, W = p.W, H = p.H;
  Pair at;
  at.col = position % W;
  at.row = position / W % H;
  at.image = position / W / H;
  const uint64_t phase = at.row % d * d + at.col % d, a = at.row / d, b = at.col / d;
  at.window = (phase * p.nu + a / P) * p.nv + b / P;
  at.slot = a % P * P + b % P;
  return at;
}

template <class Unit>
__device__ __forceinline__ Unit* map_at(const AtrousPartitionParams& p, const Pair& at) {
  const int64_t* s = p.map_stride;
  return static_cast<Unit*>(p.map) + at.image * s[0] + at.row * s[1] + at.col * s[2];
}

template <class Unit>
__device__ __forceinline__ Unit* windows_at(const AtrousPartitionParams& p, const Pair& at) {
  const int64_t* s = p.windows_stride;
  return static_cast<Unit*>(p.windows) + at.image * s[0] + at.window * s[1] + at.slot * s[2];
}

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    partition_kernel(const AtrousPartitionParams p, const Unit fill, int units) {
  const int64_t positions = p.B * p.d * p.d * p.nu * p.nv * p.P * p.P;
  const int per_block = kThreads / units;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * per_block + threadIdx.x / units;
       i < positions; i += static_cast<int64_t>(gridDim.x) * per_block) {
    const Pair at = of_slot(p, i);
    const bool exists = at.row < p.H && at.col < p.W;
    const Unit* from = exists ? map_at<const Unit>(p, at) : nullptr;
    Unit* to = windows_at<Unit>(p, at);
    for (int64_t c = threadIdx.x % units; c < p.C; c += units)
      to[c * p.windows_stride[3]] = exists ? from[c * p.map_stride[3]] : fill;
  }
}

template <class Unit>
__global__ void __launch_bounds__(kThreads) merge_kernel(const AtrousPartitionParams p, int units) {
  const int64_t positions = p.B * p.H * p.W;
  const int per_block = kThreads / units;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * per_block + threadIdx.x / units;
       i < positions; i += static_cast<int64_t>(gridDim.x) * per_block) {
    const Pair at = of_pixel(p, i);
    const Unit* from = windows_at<const Unit>(p, at);
    Unit* to = map_at<Unit>(p, at);
    for (int64_t c = threadIdx.x % units; c < p.C; c += units)
      to[c * p.map_stride[3]] = from[c * p.windows_stride[3]];
  }
}

bool is_vector(const AtrousPartitionParams& p, const void* base, const int64_t* strides) {
  bool ok = reinterpret_cast<uintptr_t>(base) % 16 == 0 && strides[3] == 1;
  for (int i = 0; i < 3; ++i) ok = ok && strides[i] * p.element_size % 16 == 0;
  return ok;
}

// The same copy in 16-byte units.
AtrousPartitionParams in_vectors(AtrousPartitionParams p) {
  const int64_t elements = 16 / p.element_size;
  p.C /= elements;
  for (int i = 0; i < 3; ++i) {
    p.map_stride[i] /= elements;
    p.windows_stride[i] /= elements;
  }
  return p;
}

uint4 repeated(uint64_t element, int size) {
  uint64_t word = element;
  for (int bits = 8 * size; bits < 64; bits *= 2) {
    word &= (uint64_t{1} << bits) - 1;
    word |= word << bits;
  }
  const unsigned low = static_cast<unsigned>(word), high = static_cast<unsigned>(word >> 32);
  return uint4{low, high, low, high};
}

// Threads along the channels: the power of two that covers them, a block at most.
int threads_for(int64_t units) {
  int threads = 1;
  while (threads < units && threads < kThreads) threads *= 2;
  return threads;
}

dim3 grid_for(int64_t positions, int units) {
  return grid_of(ceil_div<int64_t>(positions, kThreads / units));
}

// call(parameters in units, a unit's fill)
template <class Call>
int by_unit(const AtrousPartitionParams& p, const Call& call) {
  if (p.C * p.element_size % 16 == 0 && is_vector(p, p.map, p.map_stride) &&
      is_vector(p, p.windows, p.windows_stride))
    return call(in_vectors(p), repeated(p.fill, p.element_size));
  switch (p.element_size) {
    case 2:
      return call(p, static_cast<uint16_t>(p.fill));
    case 4:
      return call(p, static_cast<uint32_t>(p.fill));
    case 8:
      return call(p, static_cast<uint64_t>(p.fill));
    default:
      return kInvalidValue;
  }
}

}  // namespace
}  // namespace hybrid

using namespace hybrid;

extern "C" int hk_atrous_partition(const AtrousPartitionParams* params, void* stream) {
  return by_unit(*params, [&](const AtrousPartitionParams& p, auto fill) {
    const int units = threads_for(p.C);
    const dim3 grid = grid_for(p.B * p.d * p.d * p.nu * p.nv * p.P * p.P, units);
    return HYBRID_LAUNCH((partition_kernel<decltype(fill)>), grid, dim3(kThreads), 0, stream, p,
                         fill, units);
  });
}

extern "C" int hk_atrous_merge(const AtrousPartitionParams* params, void* stream) {
  return by_unit(*params, [&](const AtrousPartitionParams& p, auto fill) {
    const int units = threads_for(p.C);
    const dim3 grid = grid_for(p.B * p.H * p.W, units);
    return HYBRID_LAUNCH((merge_kernel<decltype(fill)>), grid, dim3(kThreads), 0, stream, p, units);
  });
}
