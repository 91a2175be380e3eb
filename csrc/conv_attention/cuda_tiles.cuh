// What the CUDA kernels of convolutional attention share: tiles of pixels in shared memory, and the
// softmax of a row of weights there.
#pragma once

#include "../common/attention/cuda_rows.cuh"
#include "../common/cuda_grid.cuh"
#include "../common/stencil/cuda_packed.cuh"
#include "conv_attention.h"

namespace hybrid {
namespace {

constexpr int kTileChannels = 32;         // of a head, at a time
constexpr int kSharedFloats = 12 * 1024;  // 48 KiB: no kernel asks for more

__host__ __device__ __forceinline__ int smaller(int64_t a, int64_t b) {
  return static_cast<int>(a < b ? a : b);
}

// Channels of a tile, in groups of four.
__host__ __device__ __forceinline__ int tile_channels(const ConvAttentionParams& p) {
  return smaller(kTileChannels, (p.d + 3) / 4 * 4);
}

// A map whose channels of a head, where it says so, move by fours.
struct HeadMap {
  InputMap map;
  bool by_fours;
};

template <class T>
HeadMap head_map(const InputMap& map, const ConvAttentionParams& p) {
  return {map, is_packed<T, 4>(map, p.d)};
}

// One that is written: (B, H, W, C) contiguous.
template <class T>
struct HeadOutput {
  T* data;
  int64_t C;
  bool by_fours;

  HeadOutput(void* data, const ConvAttentionParams& p)
      : data(static_cast<T*>(data)),
        C(p.C),
        by_fours(is_packed<T, 4>({data, {p.C, p.C, p.C}}, p.d)) {}
};

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
                                          const HeadMap& from, const PixelTile& tile, int64_t image,
                                          int head, int first_channel) {
  const int groups = tile_channels(p) / 4;
  for (int i = threadIdx.x; i < tile.rows * tile.columns * groups; i += kThreads) {
    const int c = first_channel + i % groups * 4, pixel = i / groups;
    const int64_t y = tile.row + pixel / tile.columns, x = tile.column + pixel % tile.columns;
    Channels<4> group;
    if (y >= 0 && y < p.H && x >= 0 && x < p.W) {
      const T* at = pixel_of<T>(from.map, image, y, x) + int64_t{head} * p.d + c;
      if (from.by_fours) {
        if (c < p.d) group = load_channels<4>(at);
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (c + k < p.d) group.v[k] = Convert<T>::to_float(at[k]);
      }
    }
    store_channels(to + 4 * i, group);
  }
}

// The first `count` of four channels, from channel c on, of a contiguous map.
template <class T>
__device__ __forceinline__ void store_group(const HeadOutput<T>& to, int64_t pixel, int64_t c,
                                            const Channels<4>& group, int count) {
  T* at = to.data + pixel * to.C + c;
  if (to.by_fours) {
    if (count > 0) store_channels(at, group);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (k < count) at[k] = Convert<T>::from_float(group.v[k]);
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

// What a logit is multiplied with to be to base 2.
__device__ __forceinline__ float logit_factor(const ConvAttentionParams& p) {
  return static_cast<float>(p.scale) * kLog2e;
}

template <class T>
__device__ __forceinline__ float logit_at(const ConvAttentionParams& p, int64_t index) {
  return Convert<T>::to_float(static_cast<const T*>(p.logits)[index]) * logit_factor(p);
}

}  // namespace
}  // namespace hybrid
