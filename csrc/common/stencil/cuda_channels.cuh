// Maps on CUDA. A thread works on V neighbouring channels of a pixel, in float32; a block on a tile
// of kTile channels of so many pixels that all its threads have one. Tiles and pixels are counted
// through in the x dimension of the grid alone. A map has less than 2^30 pixels (check_pixels), to
// be found by 32-bit divisions. Offsets in memory are 64-bit.
#pragma once

#include "../device.h"
#include "map.h"

namespace hybrid {
namespace {

constexpr int kThreads = 256, kTile = 32;

template <int V>
constexpr int kLanes = kTile / V;  // threads along the channels
template <int V>
constexpr int kSlots = kThreads / kLanes<V>;  // pixels

template <int V>
struct Channels {
  float v[V] = {};

  __device__ __forceinline__ void add(const Channels& other) {
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] += other.v[i];
  }
  // += a b
  __device__ __forceinline__ void add_product(const Channels& a, const Channels& b) {
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = fmaf(a.v[i], b.v[i], v[i]);
  }
};

// One access to memory for all V elements.
template <class T, int V>
struct alignas(V * sizeof(T)) Packed {
  T v[V];
};

template <int V, class T>
__device__ __forceinline__ Channels<V> load_channels(const T* from) {
  const Packed<T, V> packed = *reinterpret_cast<const Packed<T, V>*>(from);
  Channels<V> channels;
#pragma unroll
  for (int i = 0; i < V; ++i) channels.v[i] = Convert<T>::to_float(packed.v[i]);
  return channels;
}

template <int V, class T>
__device__ __forceinline__ void store_channels(T* to, const Channels<V>& channels) {
  Packed<T, V> packed;
#pragma unroll
  for (int i = 0; i < V; ++i) packed.v[i] = Convert<T>::from_float(channels.v[i]);
  *reinterpret_cast<Packed<T, V>*>(to) = packed;
}

// The first channel of pixel (i, j).
template <class T>
__device__ __forceinline__ const T* pixel_of(const InputMap& map, int64_t image, int64_t i,
                                             int64_t j) {
  return static_cast<const T*>(map.data) + image * map.stride[0] + i * map.stride[1] +
         j * map.stride[2];
}
template <class T>
__device__ __forceinline__ T* pixel_of(const OutputMap& map, int64_t image, int64_t i, int64_t j) {
  return static_cast<T*>(map.data) + image * map.image_stride + (i * map.W + j) * map.C;
}

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

// Whether V channels of every pixel can.
template <class T, int V>
bool is_packed(const InputMap& map, int64_t C) {
  bool ok = C % V == 0 && reinterpret_cast<uintptr_t>(map.data) % (V * sizeof(T)) == 0;
  for (int64_t stride : map.stride) ok = ok && stride % V == 0;
  return ok;
}

}  // namespace
}  // namespace hybrid
