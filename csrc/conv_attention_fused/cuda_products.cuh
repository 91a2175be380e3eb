// The products of sixteen windows with 32 channels of the logits' weight, as a block of 128 threads
// takes them from shared memory, in two kinds with one interface:
//   16-bit   tensor cores, mma.sync m16n8k16; a warp owns every fourth tile of sixteen rows
//   float32  multiply-adds, never TF32
// Sums leave through `add`, an entry at a time. Unrolled loops over items would hold what the
// kernels lack registers for.
#pragma once

#include "../common/attention/cuda_tile.cuh"
#include "cuda_launch.cuh"

namespace hybrid {
namespace {

constexpr int kChannels = 32;     // of D and M at a time
constexpr int kGroup = 16;        // windows
constexpr int kPaddedPairs = 96;  // rows of M in whole tiles of 16; those beyond 81 are zero
constexpr int kGroupRows = kGroup * kWindowSlots;

template <class T>
struct Products {
  static constexpr int kLd = kChannels + 8;  // of a row of D or M
  // Gradients of logits in the data's type, a row per window; zeros beyond the pairs.
  static constexpr int kGradLd = kPaddedPairs + 8, kGradElements = kGroup * kGradLd;

  // Rows of nine logits: add(slot, i, other, <pooled row(slot, i), weight row(slot, other)>), i of
  // sixteen, from where pooled_row and weight_row say that these lie.
  template <class PooledRow, class WeightRow, class Add>
  static __device__ __forceinline__ void logits(const T* pooled, const T* weight,
                                                const PooledRow& pooled_row,
                                                const WeightRow& weight_row, const Add& add) {
    const int l = lane(), n = l / 16 * 8 + l % 8;
#pragma unroll 1
    for (int slot = warp(); slot < kWindowSlots; slot += kWarps) {
      const T* a = pooled + pooled_row(slot, l % 16) * kLd + l / 16 * 8;
      const int other =
          n < kWindowSlots ? n : kWindowSlots - 1;  // columns beyond count for nothing
      const T* b = weight + weight_row(slot, other) * kLd + l / 8 % 2 * 8;
      float sums[2][4] = {};
#pragma unroll
      for (int k = 0; k < kChannels; k += 16) {
        uint32_t fa[4], fb[4];
        ldmatrix_x4(fa, a + k);
        ldmatrix_x4(fb, b + k);
        mma_16816<T>(sums[0], fa, fb[0], fb[1]);
        mma_16816<T>(sums[1], fa, fb[2], fb[3]);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = l / 4 + e / 2 * 8, column = l % 4 * 2 + e % 2;
        add(slot, i, column, sums[0][e]);
        if (column == 0) add(slot, i, 8, sums[1][e]);
      }
    }
  }

  static __device__ __forceinline__ const T* staged(T* to, const float* grads) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kGroup * kPaddedPairs; i += kThreads) {
      const int w = i / kPaddedPairs, e = i % kPaddedPairs;
      to[w * kGradLd + e] =
          Convert<T>::from_float(e < kWindowPairs ? grads[w * kWindowPairs + e] : 0.0f);
    }
    return to;
  }

  // add(pair, c, sum over windows of grads[window, pair] pooled[window, c])
  template <class Add>
  static __device__ __forceinline__ void of_weight(const T* grads, const T* pooled,
                                                   const Add& add) {
    const int l = lane();
#pragma unroll 1
    for (int tile = warp(); tile < kPaddedPairs / 16; tile += kWarps) {
      uint32_t fa[4];
      ldmatrix_x4_trans(fa, grads + (l / 16 * 8 + l % 8) * kGradLd + tile * 16 + l / 8 % 2 * 8);
#pragma unroll
      for (int c = 0; c < kChannels; c += 16) {
        uint32_t fb[4];
        ldmatrix_x4_trans(fb, pooled + l % 16 * kLd + c + l / 16 * 8);
        float sums[2][4] = {};
        mma_16816<T>(sums[0], fa, fb[0], fb[1]);
        mma_16816<T>(sums[1], fa, fb[2], fb[3]);
#pragma unroll
        for (int e = 0; e < 8; ++e)
          add(tile * 16 + l / 4 + e / 2 % 2 * 8, c + e / 4 * 8 + l % 4 * 2 + e % 2,
              sums[e / 4][e % 4]);
      }
    }
  }

  // add(window, c, sum over pairs of grads[window, pair] weight[pair, c])
  template <class Add>
  static __device__ __forceinline__ void of_pooled(const T* grads, const T* weight,
                                                   const Add& add) {
    const int l = lane(), c = warp() * 8;
    float sums[4] = {};
#pragma unroll
    for (int k = 0; k < kPaddedPairs; k += 32) {
      uint32_t fa[2][4], fb[4];
      ldmatrix_x4(fa[0], grads + l % 16 * kGradLd + k + l / 16 * 8);
      ldmatrix_x4(fa[1], grads + l % 16 * kGradLd + k + 16 + l / 16 * 8);
      ldmatrix_x4_trans(fb, weight + (k + l) * kLd + c);
      mma_16816<T>(sums, fa[0], fb[0], fb[1]);
      mma_16816<T>(sums, fa[1], fb[2], fb[3]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) add(l / 4 + e / 2 * 8, c + l % 4 * 2 + e % 2, sums[e]);
  }

 private:
  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int warp() { return threadIdx.x / 32; }
};

template <>
struct Products<float> {
  static constexpr int kLd = kChannels + 4;
  static constexpr int kGradElements = 0;  // the gradients are used where they lie

  // A thread has a third of a row.
  template <class PooledRow, class WeightRow, class Add>
  static __device__ __forceinline__ void logits(const float* pooled, const float* weight,
                                                const PooledRow& pooled_row,
                                                const WeightRow& weight_row, const Add& add) {
#pragma unroll 1
    for (int item = threadIdx.x; item < kGroupRows * 3; item += kThreads) {
      const int i = item % kGroup, slot = item / kGroup / 3, first = item / kGroup % 3 * 3;
      const float* a = pooled + pooled_row(slot, i) * kLd;
      float sums[3] = {};
#pragma unroll 2
      for (int k = 0; k < kChannels; k += 4) {
        const float4 x = four(a + k);
#pragma unroll
        for (int n = 0; n < 3; ++n)
          sums[n] = dot(x, four(weight + weight_row(slot, first + n) * kLd + k), sums[n]);
      }
#pragma unroll
      for (int n = 0; n < 3; ++n) add(slot, i, first + n, sums[n]);
    }
  }

  static __device__ __forceinline__ const float* staged(float*, const float* grads) {
    return grads;
  }

  template <class Add>
  static __device__ __forceinline__ void of_weight(const float* grads, const float* pooled,
                                                   const Add& add) {
#pragma unroll 1
    for (int item = threadIdx.x; item < kWindowPairs * kChannels / 4; item += kThreads) {
      const int pair = item / (kChannels / 4), c = item % (kChannels / 4) * 4;
      Four sums;
      for (int w = 0; w < kGroup; ++w)
        sums.add(grads[w * kWindowPairs + pair], four(pooled + w * kLd + c));
      sums.leave(pair, c, add);
    }
  }

  template <class Add>
  static __device__ __forceinline__ void of_pooled(const float* grads, const float* weight,
                                                   const Add& add) {
    static_assert(kGroup * kChannels / 4 == kThreads, "each has four channels of a window");
    const int w = threadIdx.x / (kChannels / 4), c = threadIdx.x % (kChannels / 4) * 4;
    Four sums;
    for (int pair = 0; pair < kWindowPairs; ++pair)
      sums.add(grads[w * kWindowPairs + pair], four(weight + pair * kLd + c));
    sums.leave(w, c, add);
  }

 private:
  static __device__ __forceinline__ float4 four(const float* p) {
    return *reinterpret_cast<const float4*>(p);
  }
  static __device__ __forceinline__ float dot(const float4& a, const float4& b, float sum) {
    sum = fmaf(a.x, b.x, sum);
    sum = fmaf(a.y, b.y, sum);
    sum = fmaf(a.z, b.z, sum);
    return fmaf(a.w, b.w, sum);
  }

  struct Four {
    float v[4] = {};
    __device__ __forceinline__ void add(float factor, const float4& x) {
      v[0] = fmaf(factor, x.x, v[0]);
      v[1] = fmaf(factor, x.y, v[1]);
      v[2] = fmaf(factor, x.z, v[2]);
      v[3] = fmaf(factor, x.w, v[3]);
    }
    template <class Add>
    __device__ __forceinline__ void leave(int row, int c, const Add& add) const {
#pragma unroll
      for (int k = 0; k < 4; ++k) add(row, c + k, v[k]);
    }
  };
};

}  // namespace
}  // namespace hybrid
