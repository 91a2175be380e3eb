// Products of pixels' channels with the weight N of the values, and the gradient of N.
//
// A block of `linear` owns 64 pixels and 64 output channels and takes 64 input channels at a time:
// two tiles of 9 KB in 16 bits (17 KB in float32), 32 sums in the registers of a thread; what it
// writes goes through the first tile, to leave by rows of 16 bytes. A block of `outer` owns 64 x 64
// entries of dN and every so many tiles of 64 pixels, with the same sums.
#pragma once

#include "../common/attention/cuda_tokens.cuh"
#include "../common/cuda_sums.cuh"
#include "../common/stencil/cuda_packed.cuh"
#include "cuda_launch.cuh"

namespace hybrid {
namespace {

using Params = ConvAttentionFusedParams;

constexpr int kTile = 64;  // pixels, output and input channels

constexpr __device__ int within_tile(int count) { return count < kTile ? count : kTile; }

template <class T>
struct ProductTile {
  using G = Mma<T, kTile, kTile>;
};
template <>
struct ProductTile<float> {
  using G = Fma<kTile, kTile>;
};

// The pixels of all images in a row; check_cuda_map lets 32 bits count them.
template <class T>
struct Pixels {
  InputMap map;
  int H, W, count, C;
  bool vector;

  Pixels(const ConvAttentionParams& w, const InputMap& map)
      : map(map),
        H(static_cast<int>(w.H)),
        W(static_cast<int>(w.W)),
        count(static_cast<int>(w.B * w.H * w.W)),
        C(static_cast<int>(w.C)),
        vector(is_vector(w.dtype, map.data, map.stride, C)) {}

  __device__ __forceinline__ const T* operator()(int pixel) const {
    return pixel_of<T>(map, pixel / W / H, pixel / W % H, pixel % W);
  }
};

// What `linear` adds to its products: nothing, or what pixels get back through the depthwise
// convolution. Along an axis, an even pixel lies in slot 1 of one window, an odd one in slot 2 of
// one and, unless that is the last, in slot 0 of the next.
struct Nothing {
  struct Row {
    __device__ __forceinline__ float operator()(int) const { return 0.0f; }
  };
  __device__ __forceinline__ Row row(int) const { return {}; }
};

template <class T>
struct Unpool {
  const float* grad_pooled;
  const T* taps;
  int H, W, H2, W2, C;

  Unpool(const Params& p, const FusedWorkspace& from)
      : grad_pooled(from.grad_pooled),
        taps(static_cast<const T*>(p.dw_weight)),
        H(static_cast<int>(p.windows.H)),
        W(static_cast<int>(p.windows.W)),
        H2(static_cast<int>(p.windows.H2)),
        W2(static_cast<int>(p.windows.W2)),
        C(static_cast<int>(p.windows.C)) {}

  struct Row {
    const Unpool& all;
    int64_t window;  // the first
    int rows, columns, a, b;

    __device__ __forceinline__ float operator()(int c) const {
      float sum = 0.0f;
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
          const int slot = (i ? 0 : a) * kWindowSide + (j ? 0 : b);
          const int64_t at = (window + int64_t{i} * all.W2 + j) * all.C + c;
          sum = fmaf(all.grad_pooled[at], Convert<T>::to_float(all.taps[slot * all.C + c]), sum);
        }
      return sum;
    }
  };

  __device__ __forceinline__ Row row(int pixel) const {
    const int y = pixel / W % H, x = pixel % W, i = y / 2, j = x / 2;
    const int64_t image = pixel / W / H;
    return {*this,
            (image * H2 + i) * W2 + j,
            1 + (y % 2 && i + 1 < H2),
            1 + (x % 2 && j + 1 < W2),
            1 + y % 2,
            1 + x % 2};
  }
};

// 64 channels of 64 pixels from `pixel` and channel c on.
template <class G, class T>
__device__ __forceinline__ void load_pixels(T* tile, const Pixels<T>& from, int pixel, int c) {
  copy_rows<kTile, kTile, G::LD>(tile, from.vector, from.count - pixel, from.C - c,
                                 static_cast<const T*>(from.map.data), 0,
                                 [&](int row) { return from(pixel + row) + c; });
}

// out[pixel, n] = sum over k of x[pixel, k] weight[n, k] (transposed: weight[k, n]), and `more`.
template <class G, bool kTransposed, class More>
__global__ void __launch_bounds__(kThreads)
    linear_kernel(const Pixels<typename G::T> x, const typename G::T* weight, typename G::T* out,
                  bool vector_out, const More more) {
  using T = typename G::T;
  HYBRID_DYN_SMEM(raw);
  T *rows = reinterpret_cast<T*>(raw), *columns = rows + kTile * G::LD;
  const int C = x.C, tiles = divide_up(C, kTile);
  const int first = static_cast<int>(blockIdx.x) / tiles * kTile;
  const int n0 = static_cast<int>(blockIdx.x) % tiles * kTile;
  const bool vector_weight = x.vector && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
  typename G::Scores sums;
  for (int k = 0; k < C; k += kTile) {
    __syncthreads();  // the last channels are used up
    load_pixels<G>(rows, x, first, k);
    if constexpr (kTransposed) {
      for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
        const int from = k + i / kTile, n = n0 + i % kTile;
        columns[i % kTile * G::LD + i / kTile] =
            from < C && n < C ? weight[int64_t{from} * C + n] : Convert<T>::from_float(0.0f);
      }
    } else {
      copy_rows<kTile, kTile, G::LD>(columns, vector_weight, C - n0, C - k, weight, 0,
                                     [&](int n) { return weight + int64_t{n0 + n} * C + k; });
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    G::score(sums, rows, columns, x.count - first, within_tile(C - k));
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    if (first + G::row(r) >= x.count) continue;
    const auto row = more.row(first + G::row(r));
#pragma unroll
    for (int n = 0; n < G::kCols; ++n)
      if (n0 + G::col(n) < C)
        rows[G::row(r) * G::LD + G::col(n)] =
            Convert<T>::from_float(sums.at(r, n) + row(n0 + G::col(n)));
  }
  __syncwarp();
  store_own_rows<G>(rows, vector_out, x.count - first, C - n0,
                    [&](int row) { return out + int64_t{first + row} * C + n0; });
}

template <class T, bool kTransposed, class More>
int launch_linear(const Params& p, const InputMap& from, void* to, const More& more, void* stream) {
  using G = typename ProductTile<T>::G;
  const Pixels<T> x(p.windows, from);
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(x.count, kTile) * divide_up(x.C, kTile)));
  return HYBRID_LAUNCH((linear_kernel<G, kTransposed, More>), grid, dim3(kThreads),
                       2 * kTile * G::LD * sizeof(T), stream, x,
                       static_cast<const T*>(p.value_weight), static_cast<T*>(to),
                       is_vector(p.windows.dtype, to, nullptr, x.C), more);
}

// A block's part of dN: partial[part, d, c] = sum over pixels of grad[pixel, d] x[pixel, c].
template <class G>
__global__ void __launch_bounds__(kThreads)
    outer_kernel(const Pixels<typename G::T> grad, const Pixels<typename G::T> x, float* partial,
                 int parts) {
  using T = typename G::T;
  HYBRID_DYN_SMEM(raw);
  float* grads = reinterpret_cast<float*>(raw);
  T* rows = reinterpret_cast<T*>(grads + G::kPublished);
  const int C = x.C, tiles = divide_up(C, kTile), part = static_cast<int>(blockIdx.x) % parts;
  const int d0 = static_cast<int>(blockIdx.x) / parts / tiles * kTile;
  const int c0 = static_cast<int>(blockIdx.x) / parts % tiles * kTile;
  typename G::Out sums;
  for (int first = part * kTile; first < x.count; first += parts * kTile) {
    __syncthreads();  // the last pixels are used up
    load_pixels<G>(rows, x, first, c0);
    for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
      const int k = i / kTile, d = i % kTile;
      const bool exists = first + k < x.count && d0 + d < C;
      grads[k * G::kOwnStride + d * G::kStreamStride] =
          exists ? Convert<T>::to_float(grad(first + k)[d0 + d]) : 0.0f;
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    G::multiply_published(sums, grads, rows, C - d0, within_tile(x.count - first),
                          within_tile(C - c0));
  }
#pragma unroll
  for (int r = 0; r < G::kRows; ++r)
#pragma unroll
    for (int n = 0; n < G::kOutCols; ++n) {
      const int d = d0 + G::row(r), c = c0 + G::out_col(n);
      if (d < C && c < C) partial[(int64_t{part} * C + d) * C + c] = sums.at(r, n);
    }
}

template <class T>
int launch_outer(const Params& p, const InputMap& grad_map, float* partial, void* stream) {
  using G = typename ProductTile<T>::G;
  const Pixels<T> grad(p.windows, grad_map), x(p.windows, p.windows.v);
  const int tiles = divide_up(x.C, kTile);
  const int parts = partial_blocks(divide_up(x.count, kTile), 4);
  const int error = HYBRID_LAUNCH((outer_kernel<G>), dim3(parts * tiles * tiles), dim3(kThreads),
                                  G::kPublished * sizeof(float) + kTile * G::LD * sizeof(T), stream,
                                  grad, x, partial, parts);
  const int64_t entries = p.windows.C * p.windows.C;
  return error ? error
               : launch_sum_entries(partial, parts, entries, static_cast<float*>(p.grad_value),
                                    entries, stream);
}

}  // namespace

template <class T>
int launch_values(const Params& p, const FusedWorkspace& to, void* stream) {
  return launch_linear<T, false>(p, p.windows.v, to.values, Nothing(), stream);
}

template <class T>
int launch_grad_x(const Params& p, const FusedWorkspace& from, void* stream) {
  return launch_linear<T, true>(p, contiguous_map(p.windows, from.grad_values), p.windows.grad_v,
                                Unpool<T>(p, from), stream);
}

template <class T>
int launch_grad_value(const Params& p, const FusedWorkspace& from, void* stream) {
  return launch_outer<T>(p, contiguous_map(p.windows, from.grad_values), from.partial, stream);
}

}  // namespace hybrid
