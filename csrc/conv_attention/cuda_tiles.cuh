// What the CUDA kernels of convolutional attention share: tiles of pixels in shared memory, and the
// softmax of a row of weights there.
#pragma once

#include "../common/device.h"
#include "conv_attention.h"

namespace hybrid {
namespace {

constexpr int kThreads = 128;
constexpr int kTileChannels = 32;         // of a head, at a time
constexpr int kSharedFloats = 12 * 1024;  // 48 KiB: no kernel asks for more
constexpr float kLog2e = 1.4426950408889634f;

__host__ __device__ __forceinline__ int smaller(int64_t a, int64_t b) {
  return static_cast<int>(a < b ? a : b);
}

// Channels of a tile, in groups of four.
__host__ __device__ __forceinline__ int tile_channels(const ConvAttentionParams& p) {
  return smaller(kTileChannels, (p.d + 3) / 4 * 4);
}

// Pixels from (row, column) of the map on, and tile_channels of a head of each.
struct PixelTile {
  int64_t row, column;
  int rows, columns;
};

__device__ __forceinline__ const float4& tile_group(const float* tile, int64_t offset) {
  return *reinterpret_cast<const float4*>(tile + offset);
}

// Zeros stand outside the map and beyond the head.
template <class T>
__device__ __forceinline__ void load_tile(float* to, const ConvAttentionParams& p,
                                          const ConvAttentionMap& map, const PixelTile& tile,
                                          int64_t image, int head, int first_channel) {
  const int channels = tile_channels(p);
  for (int i = threadIdx.x; i < tile.rows * tile.columns * channels; i += kThreads) {
    const int c = first_channel + i % channels, pixel = i / channels;
    const int64_t y = tile.row + pixel / tile.columns, x = tile.column + pixel % tile.columns;
    const bool exists = y >= 0 && y < p.H && x >= 0 && x < p.W && c < p.d;
    const int64_t offset = image * map.stride[0] + y * map.stride[1] + x * map.stride[2];
    const T* from = static_cast<const T*>(map.data);
    to[i] = exists ? Convert<T>::to_float(from[offset + int64_t{head} * p.d + c]) : 0.0f;
  }
}

// The largest logit (base 2) of a row, and the share of its exponential: with them, each weight can
// be computed by itself.
struct RowStatistics {
  float largest, share;

  __device__ __forceinline__ float weight(float logit) const {
    return exp2_approx(logit - largest) * share;
  }
};

// Of `slots` logits, base 2, which become weights.
__device__ __forceinline__ RowStatistics softmax_row(float* row, int slots) {
  RowStatistics s{row[0], 0.0f};
  for (int q = 1; q < slots; ++q) s.largest = fmaxf(s.largest, row[q]);
  for (int q = 0; q < slots; ++q) s.share += exp2_approx(row[q] - s.largest);
  s.share = 1.0f / s.share;
  for (int q = 0; q < slots; ++q) row[q] = s.weight(row[q]);
  return s;
}

template <class T>
__device__ __forceinline__ float logit_at(const ConvAttentionParams& p, int64_t index) {
  return Convert<T>::to_float(static_cast<const T*>(p.logits)[index]) *
         (static_cast<float>(p.scale) * kLog2e);
}

inline dim3 grid_of(int64_t blocks) {
  return dim3(static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff));
}

}  // namespace
}  // namespace hybrid
