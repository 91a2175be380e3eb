// The depthwise stencil itself, along one row of outputs: forward, and the gradient of the taps.
// The gradient of the input is the stencil again, with its taps turned round.
//
// Channels are innermost: memory is read in order, and a tile of neighbouring pixels shares the
// loads of taps and, where the stencil is dense, of pixels.
#pragma once

#include <type_traits>

#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// What K x K taps see from the first output of a row; the next output sees it `stride` pixels on.
template <class Scalar, int K>
struct Window {
  const Scalar* rows[K];  // the pixel under the first tap of each row; null for rows of zeros
  int64_t width;          // from pixel to pixel, in whole vectors
  int64_t stride, dilation;

  // Around row `centre` of a ring.
  Window(const RowRing<Scalar>& ring, int64_t centre, int64_t width, int64_t stride = 1,
         int64_t dilation = 1)
      : width(width), stride(stride), dilation(dilation) {
    for (int u = 0; u < K; ++u) {
      rows[u] = ring.row(centre + (u - K / 2) * dilation);
      if (rows[u]) rows[u] -= K / 2 * dilation * width;
    }
  }

  // What the taps, turned round, see of a ring of gradients of outputs whose pixels were loaded
  // `stride` apart: the outputs that read pixel row i. Of several branches in one ring, whose rows
  // take turns there, those of one.
  static Window transposed(const RowRing<Scalar>& ring, int64_t i, int64_t width, int64_t stride,
                           int64_t dilation, int64_t branches = 1, int64_t branch = 0) {
    Window window(ring, i, width, 1, dilation);
    for (int u = 0; u < K; ++u) {
      const int64_t row = i + (u - K / 2) * dilation;
      const bool is_output = row >= 0 && row % stride == 0;
      window.rows[u] = is_output ? ring.row(row / stride * branches + branch) : nullptr;
      if (window.rows[u]) window.rows[u] -= K / 2 * dilation * width;
    }
    return window;
  }

  bool is_dense() const { return stride == 1 && dilation == 1; }
};

// Taps (K, K, C) of a block of channels as whole vectors, in order or turned round; of one branch
// or of several.
template <class Scalar, int K>
class Taps {
 public:
  explicit Taps(int64_t width, int64_t branches = 1)
      : width_(width), data_(static_cast<size_t>(branches * K * K * width)) {}

  // weight(tap, channel) of the block's channels; idle lanes get 0.
  template <class Weight>
  void pack(int64_t channels, bool turned, const Weight& weight, int64_t branch = 0) {
    Scalar* taps = data_ + branch * K * K * width_;
    for (int tap = 0; tap < K * K; ++tap, taps += width_) {
      const int from = turned ? K * K - 1 - tap : tap;
      for (int64_t c = 0; c < channels; ++c) taps[c] = weight(from, c);
      for (int64_t c = channels; c < width_; ++c) taps[c] = 0;
    }
  }

  // A parameter (K, K, C) from `channel` on; null is zeros.
  void pack_parameter(const void* parameter, int64_t C, int64_t channel, int64_t channels,
                      bool turned = false) {
    const auto* weight = static_cast<const Scalar*>(parameter) + (parameter ? channel : 0);
    pack(parameter ? channels : 0, turned, [&](int tap, int64_t c) { return weight[tap * C + c]; });
  }

  const Scalar* data(int64_t branch = 0) const { return data_ + branch * K * K * width_; }

 private:
  const int64_t width_;
  AlignedBuffer<Scalar> data_;
};

// A parameter (C,): a bias, a norm's scale.
template <class Scalar>
using PerChannel = Taps<Scalar, 1>;

template <class T, int K, int kPixels, bool kDense, class Emit>
void convolve_tile(const Window<typename Arithmetic<T>::Scalar, K>& window, int64_t first,
                   const typename Arithmetic<T>::Scalar* taps, int64_t channels, const Emit& emit) {
  using V = typename Arithmetic<T>::Vector;
  const Window<typename Arithmetic<T>::Scalar, K> w = window;  // by value: no store can alias it
  const Emit result = emit;
  const int64_t width = w.width, step = (kDense ? 1 : w.stride) * width;
  const int64_t apart = (kDense ? 1 : w.dilation) * width;
  for_each_vector<T>(channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    V acc[kPixels] = {};
#pragma GCC unroll 3
    for (int u = 0; u < K; ++u) {
      if (!w.rows[u]) continue;
      const auto* row = w.rows[u] + first * step + c;
#pragma GCC unroll 7
      for (int v = 0; v < K; ++v) {
        const V tap = load(taps + (u * K + v) * width + c);
#pragma GCC unroll 4
        for (int t = 0; t < kPixels; ++t)
          acc[t] = fma(tap, load(row + t * step + v * apart), acc[t]);
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kPixels; ++t) result(first + t, c, lanes, acc[t]);
  });
}

// emit(pixel, channel, lanes, sum of taps times what they see) for a row of outputs. It should
// capture by value: what it refers to would be loaded again after every store.
template <class T, int K, bool kDense, class Emit>
void convolve_row_as(const Window<typename Arithmetic<T>::Scalar, K>& window, int64_t pixels,
                     const typename Arithmetic<T>::Scalar* taps, int64_t channels,
                     const Emit& emit) {
  constexpr int kTile = std::is_same_v<T, double> ? 1 : 4;  // pixels; float64 is a check
  int64_t j = 0;
  for (; j + kTile <= pixels; j += kTile)
    convolve_tile<T, K, kTile, kDense>(window, j, taps, channels, emit);
  if constexpr (kTile == 4) {
    if (pixels - j == 3) return convolve_tile<T, K, 3, kDense>(window, j, taps, channels, emit);
    if (pixels - j == 2) return convolve_tile<T, K, 2, kDense>(window, j, taps, channels, emit);
    if (pixels - j == 1) return convolve_tile<T, K, 1, kDense>(window, j, taps, channels, emit);
  }
}

template <class T, int K, class Emit>
void convolve_row(const Window<typename Arithmetic<T>::Scalar, K>& window, int64_t pixels,
                  const typename Arithmetic<T>::Scalar* taps, int64_t channels, const Emit& emit) {
  if (window.is_dense())
    convolve_row_as<T, K, true>(window, pixels, taps, channels, emit);
  else
    convolve_row_as<T, K, false>(window, pixels, taps, channels, emit);
}

// kRows rows of taps from row `first` on: their sums stay in registers along the row of outputs,
// and where the stencil is dense so does what the next output sees again.
template <class T, int K, int kRows, bool kDense>
void correlate_taps(const Window<typename Arithmetic<T>::Scalar, K>& window, int first,
                    int64_t pixels, const typename Arithmetic<T>::Scalar* grad,
                    typename Arithmetic<T>::Scalar* sums, int64_t sum_row) {
  using V = typename Arithmetic<T>::Vector;
  constexpr int kHeld = kDense ? K - 1 : 0;
  const int64_t width = window.width, step = (kDense ? 1 : window.stride) * width;
  const int64_t apart = (kDense ? 1 : window.dilation) * width;
  for (int64_t c = 0; c < width; c += Arithmetic<T>::kCount) {
    V sum[kRows][K] = {}, seen[kRows][K];
    const typename Arithmetic<T>::Scalar* row[kRows];
#pragma GCC unroll 8
    for (int u = 0; u < kRows; ++u) {
      row[u] = window.rows[first + u] + c;
#pragma GCC unroll 8
      for (int v = 0; v < kHeld; ++v) seen[u][v] = load(row[u] + v * apart);
    }
    for (int64_t j = 0; j < pixels; ++j) {
      const V g = load(grad + j * step + c);
#pragma GCC unroll 8
      for (int u = 0; u < kRows; ++u) {
#pragma GCC unroll 8
        for (int v = kHeld; v < K; ++v) seen[u][v] = load(row[u] + v * apart);
#pragma GCC unroll 8
        for (int v = 0; v < K; ++v) sum[u][v] = fma(g, seen[u][v], sum[u][v]);
#pragma GCC unroll 8
        for (int v = 0; v < kHeld; ++v) seen[u][v] = seen[u][v + 1];
        row[u] += step;
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < kRows; ++u)
#pragma GCC unroll 8
      for (int v = 0; v < K; ++v) {
        auto* to = sums + ((first + u) * K + v) * sum_row + c;
        store(to, load(to) + sum[u][v]);
      }
  }
}

template <class T, int K, bool kDense>
void correlate_row_as(const Window<typename Arithmetic<T>::Scalar, K>& window, int64_t pixels,
                      const typename Arithmetic<T>::Scalar* grad,
                      typename Arithmetic<T>::Scalar* sums, int64_t sum_row) {
  constexpr int kRows = K > 3 ? 1 : K;  // nine sums at once hide the latency of adding to them
  int begin = 0, end = K;               // of the rows of taps that see the map
  while (begin < end && !window.rows[begin]) ++begin;
  while (begin < end && !window.rows[end - 1]) --end;
  int u = begin;
  for (; u + kRows <= end; u += kRows)
    correlate_taps<T, K, kRows, kDense>(window, u, pixels, grad, sums, sum_row);
  for (; u < end; ++u) correlate_taps<T, K, 1, kDense>(window, u, pixels, grad, sums, sum_row);
}

// Adds to the sums of tap t, at sums + t * sum_row, the gradients of a row of outputs times what
// the tap sees. The gradients lie the window's stride apart, as a ring of them holds them.
template <class T, int K>
void correlate_row(const Window<typename Arithmetic<T>::Scalar, K>& window, int64_t pixels,
                   const typename Arithmetic<T>::Scalar* grad, typename Arithmetic<T>::Scalar* sums,
                   int64_t sum_row) {
  if (window.is_dense())
    correlate_row_as<T, K, true>(window, pixels, grad, sums, sum_row);
  else
    correlate_row_as<T, K, false>(window, pixels, grad, sums, sum_row);
}

// Adds a row (pixels, width) to `sums`.
template <class T>
void add_pixels(const typename Arithmetic<T>::Scalar* row, int64_t pixels, int64_t width,
                typename Arithmetic<T>::Scalar* sums) {
  for (int64_t c = 0; c < width; c += Arithmetic<T>::kCount) {
    typename Arithmetic<T>::Vector sum{};
    for (int64_t j = 0; j < pixels; ++j) sum = sum + load(row + j * width + c);
    store(sums + c, load(sums + c) + sum);
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
