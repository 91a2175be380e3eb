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
  bool has_gradients;
  int64_t rows, columns;

  WindowSquares(const ConvAttentionParams& p, bool has_gradients) : has_gradients(has_gradients) {
    for (side = 4; side > 1 && floats(p) > kSharedFloats;) side /= 2;
    rows = (p.H2 + side - 1) / side;
    columns = (p.W2 + side - 1) / side;
  }

  __host__ __device__ int64_t tile_side(const ConvAttentionParams& p) const {
    return (side - 1) * int64_t{p.stride} + p.kernel;
  }
  __host__ __device__ int64_t tile(const ConvAttentionParams& p) const {
    return has_gradients ? tile_side(p) * tile_side(p) * tile_channels(p) : 0;
  }
  __host__ __device__ int matrices(const ConvAttentionParams& p) const {
    return side * side * p.kernel * p.kernel * p.kernel * p.kernel;
  }
  // Gradients, values, weights and the gradients of these.
  __host__ __device__ int64_t floats(const ConvAttentionParams& p) const {
    return 2 * (tile(p) + matrices(p));
  }
  int64_t count(const ConvAttentionParams& p) const { return p.B * rows * columns; }
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

// A square of windows of an image and head, and the shared memory for it. Logits to base 2 come
// into `weights`, (windows, k^2, k^2), by whoever uses this.
struct WindowSquare {
  const ConvAttentionParams& p;
  int side, tile_side, head, slots, rows;
  int64_t image, i0, j0;
  float *grads, *values, *weights, *dots;

  __device__ __forceinline__ WindowSquare(const ConvAttentionParams& p,
                                          const WindowSquares& squares, float* shared,
                                          int64_t square, int head)
      : p(p),
        side(squares.side),
        tile_side(static_cast<int>(squares.tile_side(p))),
        head(head),
        slots(p.kernel * p.kernel),
        rows(side * side * slots),
        image(square / squares.columns / squares.rows),
        i0(square / squares.columns % squares.rows * side),
        j0(square % squares.columns * side),
        grads(shared),
        values(grads + squares.tile(p)),
        weights(values + squares.tile(p)),
        dots(weights + squares.matrices(p)) {}

  __device__ __forceinline__ bool exists(int window) const {
    return i0 + window / side < p.H2 && j0 + window % side < p.W2;
  }
  // Among the windows of all images.
  __device__ __forceinline__ int64_t index(int window) const {
    return (image * p.H2 + i0 + window / side) * p.W2 + j0 + window % side;
  }

  // Logits -> weights, and their statistics where these are kept.
  __device__ __forceinline__ void softmax() const {
    for (int r = threadIdx.x; r < rows; r += kThreads) {
      const RowStatistics s = softmax_row(weights + r * slots, slots);
      if (!p.statistics || !exists(r / slots)) continue;
      const int64_t row = (index(r / slots) * p.h + head) * slots + r % slots;
      float* to = static_cast<float*>(p.statistics) + 2 * row;
      to[0] = s.largest;
      to[1] = s.share;
    }
  }

  // dots = gradients of the logits; zero where there is no window.
  template <class T>
  __device__ __forceinline__ void logit_gradients(const HeadMap& grad_map,
                                                  const HeadMap& value_map) const {
    const int channels = tile_channels(p);
    const PixelTile tile{i0 * p.stride - p.padding, j0 * p.stride - p.padding, tile_side,
                         tile_side};
    for (int first = 0; first < p.d; first += channels) {
      __syncthreads();  // the last channels are used up
      load_tile<T>(grads, p, grad_map, tile, image, head, first);
      load_tile<T>(values, p, value_map, tile, image, head, first);
      __syncthreads();
      for (int r = threadIdx.x; r < rows; r += kThreads) {
        const int w = r / slots, s = r % slots;
        const int corner = (w / side * tile_side + w % side) * p.stride * channels;
        const int own = corner + (s / p.kernel * tile_side + s % p.kernel) * channels;
        float* dot = dots + r * slots;
        for (int q = 0; first == 0 && q < slots; ++q) dot[q] = 0.0f;
        add_products(dot, p, grads + own, values + corner, tile_side);
      }
    }
    for (int r = threadIdx.x; r < rows; r += kThreads) {
      float *dot = dots + r * slots, mean = 0.0f;
      const float* weight = weights + r * slots;
      for (int q = 0; q < slots; ++q) mean = fmaf(weight[q], dot[q], mean);
      const float scale = static_cast<float>(p.scale);
      for (int q = 0; q < slots; ++q)
        dot[q] = exists(r / slots) ? scale * weight[q] * (dot[q] - mean) : 0.0f;
    }
    __syncthreads();
  }
};

// Four blocks per multiprocessor: told nothing, ptxas aims at five on sm_80, and spills.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    window_kernel(const ConvAttentionParams p, const HeadMap grad, const HeadMap values,
                  const WindowSquares squares, int64_t blocks) {
  HYBRID_DYN_SMEM(raw);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int head = static_cast<int>(block % p.h);
    const WindowSquare square(p, squares, reinterpret_cast<float*>(raw), block / p.h, head);
    const int size = square.slots * square.slots;
    const auto logit_of = [&](int e) {
      return (square.index(e / size) * p.h + head) * size + e % size;
    };
    for (int e = threadIdx.x; e < squares.matrices(p); e += kThreads)
      square.weights[e] = square.exists(e / size) ? logit_at<T>(p, logit_of(e)) : 0.0f;
    __syncthreads();
    square.softmax();
    if (p.grad_logits) {
      square.template logit_gradients<T>(grad, values);
      for (int e = threadIdx.x; e < squares.matrices(p); e += kThreads)
        if (square.exists(e / size))
          static_cast<T*>(p.grad_logits)[logit_of(e)] = Convert<T>::from_float(square.dots[e]);
    }
    __syncthreads();  // before the next square
  }
}

template <class T>
int launch_windows(const ConvAttentionParams& p, void* stream) {
  const WindowSquares squares(p, p.grad_logits);
  const int64_t blocks = squares.count(p) * p.h;
  return HYBRID_LAUNCH((window_kernel<T>), grid_of(blocks), dim3(kThreads),
                       squares.floats(p) * sizeof(float), stream, p, head_map<T>(p.grad_out, p),
                       head_map<T>(p.v, p), squares, blocks);
}

}  // namespace
}  // namespace hybrid
