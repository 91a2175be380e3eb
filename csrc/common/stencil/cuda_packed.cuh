// Maps on CUDA: V neighbouring channels of a pixel in float32, and their accesses to memory.
#pragma once

#include "../device.h"
#include "map.h"

namespace hybrid {
namespace {

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

// Whether V channels of every pixel can move at once.
template <class T, int V>
bool is_packed(const InputMap& map, int64_t C) {
  bool ok = C % V == 0 && reinterpret_cast<uintptr_t>(map.data) % (V * sizeof(T)) == 0;
  for (int64_t stride : map.stride) ok = ok && stride % V == 0;
  return ok;
}

}  // namespace
}  // namespace hybrid
