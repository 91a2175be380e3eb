// Weights of as many windows (or heads of windows) as a vector has lanes: logits are transposed on
// the way in, so that the softmax runs over whole vectors, and gradients on the way out.
#pragma once

#include "../common/aligned_buffer.h"
#include "../common/arithmetic.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Logits of base 2 -> their softmax, which stays in registers.
template <class T, int kSlots, class V>
inline __attribute__((always_inline)) void softmax_row(V (&x)[kSlots]) {
  V largest = x[0];
#pragma GCC unroll 9
  for (int q = 1; q < kSlots; ++q) largest = max(largest, x[q]);
  V sum = x[0] = exp2(x[0] - largest);
#pragma GCC unroll 9
  for (int q = 1; q < kSlots; ++q) {
    x[q] = exp2(x[q] - largest);
    sum = sum + x[q];
  }
  const V share = broadcast(typename Arithmetic<T>::Scalar(1)) / sum;
#pragma GCC unroll 9
  for (int q = 0; q < kSlots; ++q) x[q] = x[q] * share;
}

// Matrices of slots x slots, one per lane: element e of lane l lies at [e * kCount + l].
template <class T>
class LaneMatrices {
 public:
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  static constexpr int kCount = Arithmetic<T>::kCount;

  explicit LaneMatrices(int slots)
      : slots_(slots),
        elements_(slots * slots),
        whole_(elements_ / kCount * kCount),
        data_(elements_ * kCount) {}

  Scalar* at(int element) const { return data_ + element * kCount; }
  const Scalar* lane(int l) const { return data_ + l; }

  void clear() {
    for (int e = 0; e < elements_; ++e) store(at(e), broadcast(Scalar(0)));
  }

  // From `count` matrices that lie `stride` apart; the lanes beyond repeat the last one.
  template <class E>
  void load_from(const E* first, int64_t stride, int count) {
    const E* row[kCount];
    for (int l = 0; l < kCount; ++l) row[l] = first + (l < count ? l : count - 1) * stride;
    for (int e = 0; e < whole_; e += kCount) {
      V rows[kCount];
#pragma GCC unroll 16
      for (int l = 0; l < kCount; ++l) rows[l] = load(row[l] + e);
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) store(at(e + i), rows[i]);
    }
    for (int l = 0; whole_ < elements_ && l < kCount; ++l) at(whole_)[l] = to_float(row[l][whole_]);
  }

  template <class E>
  void store_to(E* first, int64_t stride, int count) const {
    for (int e = 0; e < whole_; e += kCount) {
      V rows[kCount];
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) rows[i] = load(at(e + i));
      transpose(rows);
#pragma GCC unroll 16
      for (int l = 0; l < kCount; ++l) {
        if (l >= count) break;
        store(first + l * stride + e, rows[l]);
      }
    }
    if constexpr (kCount > 1)
      for (int l = 0; whole_ < elements_ && l < count; ++l)
        first[l * stride + whole_] = from_float<E>(at(whole_)[l]);
  }

  // Logits -> softmax of scale * logits, row by row. kSlots: 9, or 0 for any number.
  template <int kSlots>
  void softmax(double scale) {
    const V factor = broadcast(static_cast<Scalar>(scale * 1.4426950408889634));
    for (int p = 0; p < slots_; ++p)
      if constexpr (kSlots > 0)
        softmax_in_registers<kSlots>(at(p * kSlots), factor);
      else
        softmax_in_memory(at(p * slots_), factor);
  }

  // Gradients of these weights -> gradients of the logits.
  template <int kSlots>
  void softmax_backward(const LaneMatrices& weights, double scale) {
    const int slots = kSlots ? kSlots : slots_;
    const V factor = broadcast(static_cast<Scalar>(scale));
    for (int p = 0; p < slots; ++p) {
      Scalar* row = at(p * slots);
      const Scalar* weight = weights.at(p * slots);
      V mean = broadcast(Scalar(0));
#pragma GCC unroll 9
      for (int q = 0; q < slots; ++q)
        mean = fma(load(weight + q * kCount), load(row + q * kCount), mean);
#pragma GCC unroll 9
      for (int q = 0; q < slots; ++q) {
        const V a = load(weight + q * kCount) * factor;
        store(row + q * kCount, a * (load(row + q * kCount) - mean));
      }
    }
  }

 private:
  template <int kSlots>
  static void softmax_in_registers(Scalar* row, V factor) {
    V x[kSlots];
#pragma GCC unroll 9
    for (int q = 0; q < kSlots; ++q) x[q] = load(row + q * kCount) * factor;
    softmax_row<T>(x);
#pragma GCC unroll 9
    for (int q = 0; q < kSlots; ++q) store(row + q * kCount, x[q]);
  }

  void softmax_in_memory(Scalar* row, V factor) const {
    V largest = load(row) * factor, sum = broadcast(Scalar(0));
    for (int q = 1; q < slots_; ++q) largest = max(largest, load(row + q * kCount) * factor);
    for (int q = 0; q < slots_; ++q) {
      const V x = exp2(load(row + q * kCount) * factor - largest);
      sum = sum + x;
      store(row + q * kCount, x);
    }
    const V share = broadcast(Scalar(1)) / sum;
    for (int q = 0; q < slots_; ++q) store(row + q * kCount, load(row + q * kCount) * share);
  }

  // Elements in whole vectors. Side by side, k^4 of them: none or one is left over.
  const int slots_, elements_, whole_;
  AlignedBuffer<Scalar> data_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
