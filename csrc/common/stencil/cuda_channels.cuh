// Maps on CUDA. A thread works on V neighbouring channels of a pixel, in float32; a block on a tile
// of kTile channels of so many pixels that all its threads have one. Tiles and pixels are counted
// through in the x dimension of the grid alone. A map has less than 2^30 pixels (check_cuda_map),
// to be found by 32-bit divisions. Offsets in memory are 64-bit.
#pragma once

#include "cuda_packed.cuh"

namespace hybrid {
namespace {

constexpr int kThreads = 256, kTile = 32;

template <int V>
constexpr int kLanes = kTile / V;  // threads along the channels
template <int V>
constexpr int kSlots = kThreads / kLanes<V>;  // pixels

inline int channel_tiles(int64_t C) { return static_cast<int>(ceil_div<int64_t>(C, kTile)); }

// Which part of the work a thread has: a tile of channels, which are fastest in the grid, and the
// place-th group of pixels.
template <int V>
struct Place {
  int lane, slot, c, group;  // c: the first channel

  __device__ __forceinline__ explicit Place(int tiles)
      : lane(threadIdx.x % kLanes<V>),
        slot(threadIdx.x / kLanes<V>),
        c(static_cast<int>(blockIdx.x) % tiles * kTile + lane * V),
        group(static_cast<int>(blockIdx.x) / tiles) {}
};

// Whether V numbers of a parameter can move at once.
template <int V>
bool is_packed(const void* parameter) {
  return reinterpret_cast<uintptr_t>(parameter) % (V * sizeof(float)) == 0;
}

}  // namespace
}  // namespace hybrid
