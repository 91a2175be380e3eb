// What belongs to windows alone: the gradient of the logits, and the statistics of the softmax,
// from which the gradient of v computes weights again.
//
// A block owns a square of windows of one image and head. A thread owns a row of a window's
// weights, an output slot: it takes the products of its pixel's gradient with the values of all
// slots.
#pragma once

#include "cuda_tiles.cuh"

namespace hybrid {
namespace {

struct WindowSquares {
  int side;  // windows
  int64_t rows, columns;

  explicit WindowSquares(const ConvAttentionParams& p) {
    for (side = 4; side > 1 && floats(p) > kSharedFloats;) side /= 2;
    rows = (p.H2 + side - 1) / side;
    columns = (p.W2 + side - 1) / side;
  }

  __host__ __device__ int64_t tile_side(const ConvAttentionParams& p) const {
    return (side - 1) * int64_t{p.stride} + p.kernel;
  }
  __host__ __device__ int64_t tile(const ConvAttentionParams& p) const {
    return p.grad_logits ? tile_side(p) * tile_side(p) * tile_channels(p) : 0;
  }
  __host__ __device__ int matrices(const ConvAttentionParams& p) const {
    return side * side * p.kernel * p.kernel * p.kernel * p.kernel;
  }
  // Gradients, values, weights and the gradients of these.
  int64_t floats(const ConvAttentionParams& p) const { return 2 * (tile(p) + matrices(p)); }
  int64_t blocks(const ConvAttentionParams& p) const { return p.B * p.h * rows * columns; }
};

// dots[q] += <grad, value of slot q> over the channels of a tile.
__device__ __forceinline__ void add_products(float* dots, const ConvAttentionParams& p,
                                             const float* grad, const float* values,
                                             int tile_side) {
  const int channels = tile_channels(p);
  float4 own[kTileChannels / 4];
#pragma unroll
  for (int k = 0; k < kTileChannels / 4; ++k)
    if (4 * k < channels) own[k] = tile_group(grad, 4 * k);
  for (int a = 0; a < p.kernel; ++a)
    for (int b = 0; b < p.kernel; ++b) {
      const float* value = values + (a * tile_side + b) * channels;
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < kTileChannels / 4; ++k) {
        if (4 * k >= channels) break;
        const float4 v = tile_group(value, 4 * k);
        sum = fmaf(own[k].x, v.x, sum);
        sum = fmaf(own[k].y, v.y, sum);
        sum = fmaf(own[k].z, v.z, sum);
        sum = fmaf(own[k].w, v.w, sum);
      }
      *dots++ += sum;
    }
}

// Four blocks per multiprocessor: told nothing, ptxas aims at five on sm_80, and spills.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    window_kernel(const ConvAttentionParams p, const WindowSquares squares, int64_t blocks) {
  HYBRID_DYN_SMEM(raw);
  float* grads = reinterpret_cast<float*>(raw);
  float* values = grads + squares.tile(p);
  float* weights = values + squares.tile(p);
  float* dots = weights + squares.matrices(p);
  const int side = squares.side, slots = p.kernel * p.kernel, size = slots * slots;
  const int channels = tile_channels(p), windows = side * side;
  const int tile_side = static_cast<int>(squares.tile_side(p));
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int head = static_cast<int>(block % p.h);
    const int64_t square = block / p.h, image = square / squares.columns / squares.rows;
    const int64_t i0 = square / squares.columns % squares.rows * side;
    const int64_t j0 = square % squares.columns * side;
    const auto exists = [&](int w) { return i0 + w / side < p.H2 && j0 + w % side < p.W2; };
    const auto index_of = [&](int w) {
      return ((image * p.H2 + i0 + w / side) * p.W2 + j0 + w % side) * p.h + head;
    };
    for (int e = threadIdx.x; e < windows * size; e += kThreads) {
      weights[e] = exists(e / size) ? logit_at<T>(p, index_of(e / size) * size + e % size) : 0.0f;
      dots[e] = 0.0f;
    }
    __syncthreads();
    for (int r = threadIdx.x; r < windows * slots; r += kThreads) {
      const RowStatistics s = softmax_row(weights + r * slots, slots);
      if (!p.statistics || !exists(r / slots)) continue;
      float* to = static_cast<float*>(p.statistics) + 2 * (index_of(r / slots) * slots + r % slots);
      to[0] = s.largest;
      to[1] = s.share;
    }
    if (p.grad_logits) {
      const PixelTile tile{i0 * p.stride - p.padding, j0 * p.stride - p.padding, tile_side,
                           tile_side};
      for (int first = 0; first < p.d; first += channels) {
        __syncthreads();  // the last channels are used up
        load_tile<T>(grads, p, p.grad_out, tile, image, head, first);
        load_tile<T>(values, p, p.v, tile, image, head, first);
        __syncthreads();
        for (int r = threadIdx.x; r < windows * slots; r += kThreads) {
          const int w = r / slots, s = r % slots;
          const int corner = (w / side * tile_side + w % side) * p.stride * channels;
          const int own = corner + (s / p.kernel * tile_side + s % p.kernel) * channels;
          add_products(dots + r * slots, p, grads + own, values + corner, tile_side);
        }
      }
      for (int r = threadIdx.x; r < windows * slots; r += kThreads) {
        float *dot = dots + r * slots, mean = 0.0f;
        const float* weight = weights + r * slots;
        for (int q = 0; q < slots; ++q) mean = fmaf(weight[q], dot[q], mean);
        const float scale = static_cast<float>(p.scale);
        for (int q = 0; q < slots; ++q) dot[q] = scale * weight[q] * (dot[q] - mean);
      }
      __syncthreads();
      for (int e = threadIdx.x; e < windows * size; e += kThreads)
        if (exists(e / size))
          static_cast<T*>(p.grad_logits)[index_of(e / size) * size + e % size] =
              Convert<T>::from_float(dots[e]);
    }
    __syncthreads();  // before the next square
  }
}

template <class T>
int launch_windows(const ConvAttentionParams& p, void* stream) {
  const WindowSquares squares(p);
  const int64_t blocks = squares.blocks(p);
  return HYBRID_LAUNCH((window_kernel<T>), grid_of(blocks), dim3(kThreads),
                       squares.floats(p) * sizeof(float), stream, p, squares, blocks);
}

}  // namespace
}  // namespace hybrid
