// Logits generated on chip from D and M for the kernels of convolutional attention, whose squares
// of pixels and windows are sixteen windows to a slot: 8 x 8 pixels have 4 x 4 of each parity, and
// a pixel of some parity lies in the same slots of all windows that cover it.
//
// Shared memory of a block: 32 channels of the 25 windows that reach the pixels and of the 81 rows
// of a head's weight (10 KB in 16 bits, 17 KB in float32), in place of the values that come later.
// D and M are read by rows of 16 bytes where they are aligned.
#pragma once

#include "../common/attention/cuda_tokens.cuh"
#include "../conv_attention/cuda_gather.cuh"
#include "cuda_products.cuh"

namespace hybrid {
namespace {

// Window (i, j) among those of all images or, where it does not exist, the nearest that does: what
// becomes of it is not used.
__device__ __forceinline__ int64_t window_near(const ConvAttentionParams& p, int64_t image,
                                               int64_t i, int64_t j) {
  const int64_t row = i < p.H2 ? i : p.H2 - 1, column = j < p.W2 ? j : p.W2 - 1;
  return (image * p.H2 + row) * p.W2 + column;
}

template <class T>
struct GeneratedLogits {
  using P = Products<T>;
  static constexpr int kLargestSide = 8, kBlocks = 6;
  static constexpr int kTileWindows = 25, kPooledRows = 32;  // of 5 x 5 windows, and room for them
  static constexpr int kWeightOffset = kPooledRows * P::kLd;
  static constexpr int kScratchElements = kWeightOffset + kPaddedPairs * P::kLd;
  static constexpr int kScratchFloats = kScratchElements * static_cast<int>(sizeof(T)) / 4;

  const T *pooled, *weight, *bias;
  int64_t C;
  bool vector;

  GeneratedLogits(const ConvAttentionFusedParams& p, const FusedWorkspace& workspace)
      : pooled(static_cast<const T*>(workspace.pooled)),
        weight(static_cast<const T*>(p.logit_weight)),
        bias(static_cast<const T*>(p.logit_bias)),
        C(p.windows.C),
        vector(is_vector(p.windows.dtype, pooled, nullptr, static_cast<int>(C)) &&
               is_vector(p.windows.dtype, weight, nullptr, static_cast<int>(C))) {}

  static __device__ __forceinline__ ConvAttentionParams known(ConvAttentionParams p) {
    p.kernel = kWindowSide;
    p.stride = 2;
    p.padding = 1;
    return p;
  }

  // Channels from `first` on of D's rows index(i), i < rows, and of a head's weight into scratch.
  template <class Index>
  __device__ __forceinline__ void copy_to(T* scratch, int head, int first, int rows,
                                          const Index& index) const {
    const int channels = static_cast<int>(C) - first;
    const T* const own = weight + int64_t{head} * kWindowPairs * C + first;
    copy_rows<kPaddedPairs, kChannels, P::kLd>(scratch + kWeightOffset, vector, kWindowPairs,
                                               channels, weight, 0,
                                               [&](int row) { return own + row * C; });
    copy_rows<kPooledRows, kChannels, P::kLd>(
        scratch, vector, rows, channels, pooled, 0,
        [&](int row) { return pooled + index(row) * C + first; });
    cp_async_commit();
    cp_async_wait<0>();
  }

  // Logits to base 2 of all slots of sixteen windows, to logits[place(slot, i) + other]. D's rows
  // are those of `copy_to`; pooled_row(slot, i) is that of window i. All threads take part.
  template <bool kTransposed, class Index, class PooledRow, class Place>
  __device__ __forceinline__ void generate(float* logits, T* scratch, int head, float factor,
                                           int rows, const Index& index,
                                           const PooledRow& pooled_row, const Place& place) const {
    const auto weight_row = [](int slot, int other) {
      return kTransposed ? other * kWindowSlots + slot : slot * kWindowSlots + other;
    };
    for (int first = 0; first < C; first += kChannels) {
      __syncthreads();  // scratch is used up
      copy_to(scratch, head, first, rows, index);
      __syncthreads();
      P::logits(scratch, scratch + kWeightOffset, pooled_row, weight_row,
                [&](int slot, int i, int other, float sum) {
                  float& to = logits[place(slot, i) + other];
                  if (first == 0) {
                    const int at = head * kWindowPairs + weight_row(slot, other);
                    to = factor * (sum + (bias ? Convert<T>::to_float(bias[at]) : 0.0f));
                  } else {
                    to = fmaf(factor, sum, to);
                  }
                });
    }
    __syncthreads();
  }

  // For gather_kernel: those of 8 x 8 pixels, by (pixel, covering window).
  template <bool kTransposed>
  __device__ __forceinline__ void prepare(float* logits, float* scratch,
                                          const ConvAttentionParams& p,
                                          const PixelSquare& square) const {
    const int64_t i0 = square.y0 / 2, j0 = square.x0 / 2;
    generate<kTransposed>(
        logits, reinterpret_cast<T*>(scratch), square.head, logit_factor(p), kTileWindows,
        [&](int row) { return window_near(p, square.image, i0 + row / 5, j0 + row % 5); },
        [](int slot, int i) {  // slot 0 belongs to the next window
          return (i / 4 + (slot / kWindowSide == 0)) * 5 + i % 4 + (slot % kWindowSide == 0);
        },
        [](int slot, int i) {
          const int a = slot / kWindowSide, b = slot % kWindowSide;
          const int pixel = (i / 4 * 2 + (a != 1)) * kLargestSide + i % 4 * 2 + (b != 1);
          return (pixel * 4 + a / 2 * 2 + b / 2) * kWindowSlots;
        });
  }

  template <bool>
  __device__ __forceinline__ void load(float*, const ConvAttentionParams&, int64_t, int) const {}
};

}  // namespace
}  // namespace hybrid
