// As many windows (or heads of windows) as a vector has lanes: where their pixels lie, what their
// weights make of them, and the gradients of these weights.
#pragma once

#include "cpu_pixels.h"
#include "cpu_weights.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Where the pixels of a step's windows begin, in the order of memory: heads first.
template <class T>
class WindowWalk {
 public:
  WindowWalk(const ConvAttentionParams& p, const StepLayout<T>& layout, int heads)
      : p_(p), layout_(layout), heads_(heads) {}

  void start(int64_t rows) {
    rows_ = rows;
    image_ = row_ = column_ = 0;
    head_ = 0;
  }

  int64_t next() {
    const int64_t base = image_ * layout_.image + row_ * p_.stride * layout_.row +
                         column_ * p_.stride * layout_.pixel + head_ * layout_.channels;
    if (++head_ < heads_) return base;
    head_ = 0;
    if (++column_ < p_.W2) return base;
    column_ = 0;
    if (++row_ < rows_) return base;
    row_ = 0;
    ++image_;
    return base;
  }

 private:
  const ConvAttentionParams& p_;
  const StepLayout<T>& layout_;
  const int heads_;
  int64_t rows_, image_, row_, column_;
  int head_;
};

// kSlots: 9, or 0 for windows of any size.
template <class T, int kSlots>
class LaneWindows {
 public:
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  using Matrices = LaneMatrices<T>;
  static constexpr int kCount = Arithmetic<T>::kCount;

  // heads: of a window, each in a lane of its own; 1 where the heads take turns.
  LaneWindows(const ConvAttentionParams& p, const StepLayout<T>& layout, int heads,
              bool has_products)
      : d_(p.d),
        slots_(p.kernel * p.kernel),
        layout_(layout),
        walk_(p, layout, heads),
        rows_(has_products ? slots_ * kCount * kCount : 0),
        columns_(has_products ? slots_ * kCount * kCount : 0) {
    for (int s = 0; s < slots_; ++s)
      slot_[s] = s / p.kernel * layout.row + s % p.kernel * layout.pixel;
  }

  // The first windows of a step of some rows of windows.
  void start(int64_t rows) { walk_.start(rows); }

  // The next ones; lanes that are left over repeat the first.
  void take(int lanes) {
    lanes_ = lanes;
    for (int l = 0; l < lanes; ++l) base_[l] = walk_.next();
    for (int l = lanes; l < kCount; ++l) base_[l] = base_[0];
  }

  int64_t base(int lane) const { return base_[lane]; }
  int64_t slot(int s) const { return slot_[s]; }

  // Adds to the slots of every window the weighted sums of the slots; transposed, with input and
  // output slots exchanged.
  template <bool kTransposed>
  void mix(const Matrices& weights, const Scalar* from, Scalar* to) const {
    for (int l = 0; l < lanes_; ++l)
      mix_window<kTransposed>(weights.lane(l), from + base_[l], to + base_[l]);
  }

  // Gradients of the weights: [p, q] = <grads[p], values[q]>, for all lanes at once.
  void multiply(const Scalar* grads, const Scalar* values, Matrices& products) const {
    constexpr int kBlock = kSlots ? 3 : 1;
    const int slots = kSlots ? kSlots : slots_;
    products.clear();
    for (int64_t c = 0; c < d_; c += kCount) {
      transpose_slots(grads + c, rows_);
      transpose_slots(values + c, columns_);
      const int channels = static_cast<int>(d_ - c < kCount ? d_ - c : kCount);
      for (int p = 0; p < slots; p += kBlock)
        for (int q = 0; q < slots; q += kBlock)
          add_products<kBlock>(products, p, q, slots, channels);
    }
  }

 private:
  // to[p] += sum over q of weight[p, q] from[q]; transposed, to[q] += sum over p.
  template <bool kTransposed>
  void mix_window(const Scalar* weight, const Scalar* from, Scalar* to) const {
    constexpr int kRows = kSlots ? kSlots : 1;
    const int slots = kSlots ? kSlots : slots_;
    const int to_step = (kTransposed ? 1 : slots) * kCount;
    const int from_step = (kTransposed ? slots : 1) * kCount;
    for (int64_t c = 0; c < layout_.channels; c += kCount)
      for (int s = 0; s < slots; s += kRows) {
        V sum[kRows];
#pragma GCC unroll 9
        for (int r = 0; r < kRows; ++r) sum[r] = load(to + slot_[s + r] + c);
#pragma GCC unroll 9
        for (int t = 0; t < slots; ++t) {
          const V x = load(from + slot_[t] + c);
#pragma GCC unroll 9
          for (int r = 0; r < kRows; ++r)
            sum[r] = fma(broadcast(weight[(s + r) * to_step + t * from_step]), x, sum[r]);
        }
#pragma GCC unroll 9
        for (int r = 0; r < kRows; ++r) store(to + slot_[s + r] + c, sum[r]);
      }
  }

  // Channels of every slot of the lanes' windows: [slot][channel][lane].
  void transpose_slots(const Scalar* from, Scalar* to) const {
    for (int s = 0; s < slots_; ++s, to += kCount * kCount) {
      V lanes[kCount];
#pragma GCC unroll 16
      for (int l = 0; l < kCount; ++l) lanes[l] = load(from + base_[l] + slot_[s]);
      transpose(lanes);
#pragma GCC unroll 16
      for (int c = 0; c < kCount; ++c) store(to + c * kCount, lanes[c]);
    }
  }

  template <int kBlock>
  void add_products(Matrices& products, int p, int q, int slots, int channels) const {
    const Scalar *row = rows_ + p * kCount * kCount, *column = columns_ + q * kCount * kCount;
    V sum[kBlock][kBlock];
#pragma GCC unroll 3
    for (int i = 0; i < kBlock; ++i)
#pragma GCC unroll 3
      for (int j = 0; j < kBlock; ++j) sum[i][j] = load(products.at((p + i) * slots + q + j));
    for (int c = 0; c < channels; ++c, row += kCount, column += kCount)
#pragma GCC unroll 3
      for (int i = 0; i < kBlock; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < kBlock; ++j)
          sum[i][j] =
              fma(load(row + i * kCount * kCount), load(column + j * kCount * kCount), sum[i][j]);
#pragma GCC unroll 3
    for (int i = 0; i < kBlock; ++i)
#pragma GCC unroll 3
      for (int j = 0; j < kBlock; ++j) store(products.at((p + i) * slots + q + j), sum[i][j]);
  }

  const int64_t d_;
  const int slots_;
  const StepLayout<T>& layout_;
  WindowWalk<T> walk_;
  AlignedBuffer<Scalar> rows_, columns_;           // gradients and values: [slot][channel][lane]
  int64_t slot_[kMaxConvKernel * kMaxConvKernel];  // from a window's first pixel
  int64_t base_[kCount];                           // of the first pixel, for each lane
  int lanes_;                                      // in use
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
