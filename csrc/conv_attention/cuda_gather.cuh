// Output pixels gather from the windows that cover them: y from v, or the gradient of v from that
// of y, with output and input slots exchanged.
//
// A block owns a square of pixels of one image and head. Every row of weights that it needs belongs
// to one pixel and one of the windows that cover it, at most ceil(kernel / stride)^2: no row is
// computed by two blocks. Weights and values lie in shared memory; a thread owns four channels of a
// pixel. Where logits come from, memory or what generates them, is a type.
#pragma once

#include "cuda_tiles.cuh"

namespace hybrid {
namespace {

// Squares of pixels, and how many of them an image has.
struct PixelSquares {
  int side, covering;  // pixels; windows over a pixel along an axis, at most
  int scratch;         // floats that generating logits takes, before there are values
  int64_t rows, columns;

  PixelSquares(const ConvAttentionParams& p, int largest_side, int scratch)
      : covering((p.kernel + p.stride - 1) / p.stride), scratch(scratch) {
    for (side = largest_side; side > 1 && floats(p) > kSharedFloats;) side /= 2;
    rows = (p.H + side - 1) / side;
    columns = (p.W + side - 1) / side;
  }

  __host__ __device__ int tile_side(const ConvAttentionParams& p) const {
    return side + 2 * (p.kernel - 1);
  }
  __host__ __device__ int tile(const ConvAttentionParams& p) const {
    const int values = tile_side(p) * tile_side(p) * tile_channels(p);
    return values > scratch ? values : scratch;
  }
  __host__ __device__ int weights(const ConvAttentionParams& p) const {
    return side * side * covering * covering * p.kernel * p.kernel;
  }
  int floats(const ConvAttentionParams& p) const { return tile(p) + weights(p); }
  int64_t blocks(const ConvAttentionParams& p) const { return p.B * p.h * rows * columns; }
};

// The square of a block.
struct PixelSquare {
  int64_t image, y0, x0;
  int head;

  __device__ __forceinline__ PixelSquare(const ConvAttentionParams& p, const PixelSquares& squares,
                                         int64_t block) {
    const int64_t square = block / p.h;
    head = static_cast<int>(block % p.h);
    image = square / squares.columns / squares.rows;
    y0 = square / squares.columns % squares.rows * squares.side;
    x0 = square % squares.columns * squares.side;
  }
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

// Logits that lie in memory.
template <class T>
struct StoredLogits {
  static constexpr int kLargestSide = 16, kScratchFloats = 0, kBlocks = 8;

  // The parameters, with those in place that are known to the compiler.
  static __device__ __forceinline__ ConvAttentionParams known(const ConvAttentionParams& p) {
    return p;
  }

  // Of all rows of a square; all threads take part.
  template <bool kTransposed>
  __device__ __forceinline__ void prepare(float*, float*, const ConvAttentionParams&,
                                          const PixelSquare&) const {}

  // Of the row of an output slot or, transposed, the column of an input slot.
  template <bool kTransposed>
  __device__ __forceinline__ void load(float* row, const ConvAttentionParams& p, int64_t window,
                                       int slot) const {
    const int slots = p.kernel * p.kernel;
    const int64_t first = window * slots * slots + (kTransposed ? slot : slot * slots);
    for (int other = 0; other < slots; ++other)
      row[other] = logit_at<T>(p, first + (kTransposed ? other * slots : other));
  }
};

template <bool kTransposed>
__device__ __forceinline__ void to_weights(float* row, const ConvAttentionParams& p,
                                           int64_t window) {
  const int slots = p.kernel * p.kernel;
  if constexpr (kTransposed) {
    const float* s = static_cast<const float*>(p.statistics) + 2 * window * slots;
    for (int other = 0; other < slots; ++other)
      row[other] = RowStatistics{s[2 * other], s[2 * other + 1]}.weight(row[other]);
  } else {
    softmax_row(row, slots);
  }
}

template <class T, bool kTransposed, class Logits>
__global__ void __launch_bounds__(kThreads, Logits::kBlocks)
    gather_kernel(const ConvAttentionParams given, const Logits logits, const HeadMap values,
                  const HeadOutput<T> out, const PixelSquares squares, int64_t blocks) {
  HYBRID_DYN_SMEM(raw);
  const ConvAttentionParams p = Logits::known(given);
  float* tile = reinterpret_cast<float*>(raw);
  float* weights = tile + squares.tile(p);
  const int side = squares.side, tile_side = squares.tile_side(p), channels = tile_channels(p);
  const int slots = p.kernel * p.kernel, windows = squares.covering * squares.covering;
  const int groups = channels / 4, reach = p.kernel - 1;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const PixelSquare square(p, squares, block);
    const int64_t image = square.image, y0 = square.y0, x0 = square.x0;
    const int head = square.head;
    logits.template prepare<kTransposed>(weights, tile, p, square);
    for (int r = threadIdx.x; r < side * side * windows; r += kThreads) {
      const int pixel = r / windows;
      const Covering window(p, y0 + pixel / side, x0 + pixel % side, r % windows, squares.covering);
      if (!window.exists) continue;
      const int64_t index = ((image * p.H2 + window.i) * p.W2 + window.j) * p.h + head;
      logits.template load<kTransposed>(weights + r * slots, p, index, window.slot);
      to_weights<kTransposed>(weights + r * slots, p, index);
    }
    for (int first = 0; first < p.d; first += channels) {
      load_tile<T>(tile, p, values, {y0 - reach, x0 - reach, tile_side, tile_side}, image, head,
                   first);
      __syncthreads();
      for (int i = threadIdx.x; i < side * side * groups; i += kThreads) {
        const int pixel = i / groups, c = i % groups * 4;
        const int64_t y = y0 + pixel / side, x = x0 + pixel % side;
        Channels<4> sum;
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
              sum.v[0] = fmaf(factor, value.x, sum.v[0]);
              sum.v[1] = fmaf(factor, value.y, sum.v[1]);
              sum.v[2] = fmaf(factor, value.z, sum.v[2]);
              sum.v[3] = fmaf(factor, value.w, sum.v[3]);
            }
        }
        if (y >= p.H || x >= p.W) continue;
        store_group(out, (image * p.H + y) * p.W + x, int64_t{head} * p.d + first + c, sum,
                    p.d - first - c);
      }
      __syncthreads();  // before the next channels or weights
    }
  }
}

template <class T, bool kTransposed, class Logits>
int launch_gather(const ConvAttentionParams& p, const Logits& logits, const InputMap& values,
                  void* out, void* stream) {
  const PixelSquares squares(p, Logits::kLargestSide, Logits::kScratchFloats);
  const int64_t blocks = squares.blocks(p);
  return HYBRID_LAUNCH((gather_kernel<T, kTransposed, Logits>), grid_of(blocks), dim3(kThreads),
                       squares.floats(p) * sizeof(float), stream, p, logits, head_map<T>(values, p),
                       HeadOutput<T>(out, p), squares, blocks);
}

}  // namespace
}  // namespace hybrid
