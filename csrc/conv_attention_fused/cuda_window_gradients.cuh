// Backward, by windows: the gradients of D, M and m, and the statistics of the softmax.
//
// A block owns every so many squares of 4 x 4 windows and goes through their heads: logits are
// generated, their gradients made of the tiles of dy and V, and these reduced at once, so that
// neither ever leaves the chip. Sums over squares (M, m) and heads (D) are kept in memory of the
// block's own, where the same thread adds the same entries: a few KB that stay in the caches.
//
// Shared memory, for C = 8 and h = 2: 2 x 324 floats of tiles and 2 x 1296 of weights and their
// gradients, 13 KB; at most 31 KB, for d >= 32. With them D, M and the gradients in the data's type
// (14 KB in 16 bits), or D and M (18 KB in float32). 128 registers: four blocks a multiprocessor.
#pragma once

#include "../conv_attention/cuda_windows.cuh"
#include "cuda_logits.cuh"

namespace hybrid {
namespace {

// What the gradients of the logits are reduced to; null where not asked for.
struct LogitSums {
  float* grad_pooled;  // (B, H2, W2, C)
  float* partial;      // (blocks, row): 81 h rows of C, then 81 h of the bias
  int64_t row;

  __device__ __forceinline__ float* own() const { return partial + blockIdx.x * row; }
};

template <class T>
constexpr int gradient_scratch_bytes() {
  return (GeneratedLogits<T>::kScratchElements + Products<T>::kGradElements) *
         static_cast<int>(sizeof(T));
}

__device__ __forceinline__ int64_t near(const WindowSquare& square, int window) {
  return window_near(square.p, square.image, square.i0 + window / square.side,
                     square.j0 + window % square.side);
}

__device__ __forceinline__ void add_bias_gradients(const WindowSquare& square, const LogitSums& to,
                                                   bool is_first_square) {
  const int pair = threadIdx.x;
  if (pair >= kWindowPairs) return;
  const int64_t weights = int64_t{kWindowPairs} * square.p.h * square.p.C;
  float& at = to.own()[weights + square.head * kWindowPairs + pair];
  float sum = is_first_square ? 0.0f : at;
  for (int w = 0; w < kGroup; ++w) sum += square.dots[w * kWindowPairs + pair];
  at = sum;
}

// Of one square and head.
template <class T>
__device__ __forceinline__ void reduce_gradients(const WindowSquare& square,
                                                 const GeneratedLogits<T>& logits, T* scratch,
                                                 const LogitSums& to, bool is_first_square) {
  using P = Products<T>;
  const int C = static_cast<int>(logits.C), first_pair = square.head * kWindowPairs;
  const T* const grads = P::staged(scratch + GeneratedLogits<T>::kScratchElements, square.dots);
  if (to.partial) add_bias_gradients(square, to, is_first_square);
  for (int first = 0; first < C; first += kChannels) {
    __syncthreads();  // scratch is used up, and the gradients are there
    logits.copy_to(scratch, square.head, first, kGroup, [&](int w) { return near(square, w); });
    __syncthreads();
    if (to.partial)
      P::of_weight(grads, scratch, [&](int pair, int c, float sum) {
        if (pair >= kWindowPairs || first + c >= C) return;
        float& at = to.own()[int64_t{first_pair + pair} * C + first + c];
        at = is_first_square ? sum : at + sum;
      });
    if (to.grad_pooled)
      P::of_pooled(grads, scratch + GeneratedLogits<T>::kWeightOffset,
                   [&](int w, int c, float sum) {
                     if (!square.exists(w) || first + c >= C) return;
                     float& at = to.grad_pooled[square.index(w) * C + first + c];
                     at = square.head == 0 ? sum : at + sum;
                   });
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    window_gradient_kernel(const ConvAttentionParams p, const GeneratedLogits<T> logits,
                           const HeadMap grad, const HeadMap values, const WindowSquares squares,
                           const LogitSums to, int64_t count) {
  HYBRID_DYN_SMEM(raw);
  float* const shared = reinterpret_cast<float*>(raw);
  T* const scratch = reinterpret_cast<T*>(shared + squares.floats(p));
  for (int64_t s = blockIdx.x; s < count; s += gridDim.x)
    for (int head = 0; head < p.h; ++head) {
      const WindowSquare square(p, squares, shared, s, head);
      logits.template generate<false>(
          square.weights, scratch, head, logit_factor(p), kGroup,
          [&](int w) { return near(square, w); }, [](int, int w) { return w; },
          [](int slot, int w) { return (w * kWindowSlots + slot) * kWindowSlots; });
      square.softmax();
      if (!squares.has_gradients) continue;
      square.template logit_gradients<T>(grad, values);
      reduce_gradients(square, logits, scratch, to, s == blockIdx.x);
    }
}

}  // namespace
}  // namespace hybrid
