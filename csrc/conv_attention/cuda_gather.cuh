// Output pixels gather from the windows that cover them: y from v, or the gradient of v from that
// of y, with output and input slots exchanged.
//
// A block owns a square of pixels of one image and head. Every row of weights that it needs belongs
// to one pixel and one of the windows that cover it, at most ceil(kernel / stride)^2: no row is
// computed by two blocks. Weights and values lie in shared memory; a thread owns four channels of a
// pixel.
#pragma once

#include "cuda_tiles.cuh"

namespace hybrid {
namespace {

// Squares of pixels, and how many of them an image has.
struct PixelSquares {
  int side, covering;  // pixels; windows over a pixel along an axis, at most
  int64_t rows, columns;

  explicit PixelSquares(const ConvAttentionParams& p)
      : covering((p.kernel + p.stride - 1) / p.stride) {
    for (side = 16; side > 1 && floats(p) > kSharedFloats;) side /= 2;
    rows = (p.H + side - 1) / side;
    columns = (p.W + side - 1) / side;
  }

  __host__ __device__ int tile_side(const ConvAttentionParams& p) const {
    return side + 2 * (p.kernel - 1);
  }
  __host__ __device__ int weights(const ConvAttentionParams& p) const {
    return side * side * covering * covering * p.kernel * p.kernel;
  }
  int floats(const ConvAttentionParams& p) const {
    return tile_side(p) * tile_side(p) * tile_channels(p) + weights(p);
  }
  int64_t blocks(const ConvAttentionParams& p) const { return p.B * p.h * rows * columns; }
};

// One of the windows that cover a pixel, and the slot of that pixel in it.
struct Covering {
  int64_t i, j;
  int slot;
  bool exists;

  __device__ __forceinline__ Covering(const ConvAttentionParams& p, int64_t y, int64_t x, int which,
                                      int covering) {
    const int64_t row = y + p.padding, column = x + p.padding;
    const int up = which / covering, left = which % covering;
    const int64_t a = row % p.stride + int64_t{up} * p.stride;
    const int64_t b = column % p.stride + int64_t{left} * p.stride;
    i = row / p.stride - up;
    j = column / p.stride - left;
    slot = static_cast<int>(a * p.kernel + b);
    exists = y < p.H && x < p.W && a < p.kernel && b < p.kernel && i >= 0 && i < p.H2 && j >= 0 &&
             j < p.W2;
  }
};

template <class T, bool kTransposed>
__device__ __forceinline__ void load_weights(float* to, const ConvAttentionParams& p,
                                             int64_t window, int slot) {
  const int slots = p.kernel * p.kernel;
  if constexpr (kTransposed) {
    for (int other = 0; other < slots; ++other) {
      const int64_t row = window * slots + other;
      const float* s = static_cast<const float*>(p.statistics) + 2 * row;
      to[other] = RowStatistics{s[0], s[1]}.weight(logit_at<T>(p, row * slots + slot));
    }
  } else {
    const int64_t row = window * slots + slot;
    for (int other = 0; other < slots; ++other) to[other] = logit_at<T>(p, row * slots + other);
    softmax_row(to, slots);
  }
}

template <class T, bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const ConvAttentionParams p, const ConvAttentionMap values, T* out,
                  const PixelSquares squares, int64_t blocks) {
  HYBRID_DYN_SMEM(raw);
  float* tile = reinterpret_cast<float*>(raw);
  const int side = squares.side, tile_side = squares.tile_side(p), channels = tile_channels(p);
  float* weights = tile + tile_side * tile_side * channels;
  const int slots = p.kernel * p.kernel, windows = squares.covering * squares.covering;
  const int groups = channels / 4, reach = p.kernel - 1;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int head = static_cast<int>(block % p.h);
    const int64_t square = block / p.h, image = square / squares.columns / squares.rows;
    const int64_t y0 = square / squares.columns % squares.rows * side;
    const int64_t x0 = square % squares.columns * side;
    for (int r = threadIdx.x; r < side * side * windows; r += kThreads) {
      const int pixel = r / windows;
      const Covering window(p, y0 + pixel / side, x0 + pixel % side, r % windows, squares.covering);
      const int64_t index = ((image * p.H2 + window.i) * p.W2 + window.j) * p.h + head;
      if (window.exists) load_weights<T, kTransposed>(weights + r * slots, p, index, window.slot);
    }
    for (int first = 0; first < p.d; first += channels) {
      load_tile<T>(tile, p, values, {y0 - reach, x0 - reach, tile_side, tile_side}, image, head,
                   first);
      __syncthreads();
      for (int i = threadIdx.x; i < side * side * groups; i += kThreads) {
        const int pixel = i / groups, c = i % groups * 4;
        const int64_t y = y0 + pixel / side, x = x0 + pixel % side;
        float sum[4] = {};
        for (int w = 0; w < windows; ++w) {
          const Covering window(p, y, x, w, squares.covering);
          if (!window.exists) continue;
          const int row = static_cast<int>(window.i * p.stride - p.padding - y0) + reach;
          const int column = static_cast<int>(window.j * p.stride - p.padding - x0) + reach;
          const float* weight = weights + (pixel * windows + w) * slots;
          for (int a = 0; a < p.kernel; ++a)
            for (int b = 0; b < p.kernel; ++b) {
              const float factor = *weight++;
              const float4 value =
                  tile_group(tile, ((row + a) * tile_side + column + b) * channels + c);
              sum[0] = fmaf(factor, value.x, sum[0]);
              sum[1] = fmaf(factor, value.y, sum[1]);
              sum[2] = fmaf(factor, value.z, sum[2]);
              sum[3] = fmaf(factor, value.w, sum[3]);
            }
        }
        if (y >= p.H || x >= p.W) continue;
        T* to = out + ((image * p.H + y) * p.W + x) * p.C + int64_t{head} * p.d + first + c;
        for (int k = 0; k < 4 && first + c + k < p.d; ++k) to[k] = Convert<T>::from_float(sum[k]);
      }
      __syncthreads();  // before the next channels or weights
    }
  }
}

template <class T, bool kTransposed>
int launch_gather(const ConvAttentionParams& p, const ConvAttentionMap& values, void* out,
                  void* stream) {
  const PixelSquares squares(p);
  const int64_t blocks = squares.blocks(p);
  return HYBRID_LAUNCH((gather_kernel<T, kTransposed>), grid_of(blocks), dim3(kThreads),
                       squares.floats(p) * sizeof(float), stream, p, values, static_cast<T*>(out),
                       squares, blocks);
}

}  // namespace
}  // namespace hybrid
