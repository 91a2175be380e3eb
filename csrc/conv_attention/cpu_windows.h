// Convolutional attention over a chunk of windows, step by step.
//
// A worker holds the pixels of a step in buffers that stay in its caches. Windows take their values
// from one buffer and add their results up in another, in ascending order. No two workers ever add
// to the same pixel: a chunk owns rows of the map, and also computes the windows above that reach
// into them.
#pragma once

#include "cpu_pixels.h"
#include "cpu_weights.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kBandRows = 16;       // rows of windows in a chunk, of a large image
constexpr int64_t kChunkWindows = 256;  // windows (of every head) in a chunk of small images

// What a launch is cut into: bands of one image, or whole small images.
struct ChunkCut {
  int64_t bands, images, chunks;  // per image; per chunk; in all

  explicit ChunkCut(const ConvAttentionParams& p)
      : bands(ceil_div(p.H2, kBandRows)),
        images(bands > 1 ? 1 : ceil_div(kChunkWindows, p.H2 * p.W2 * p.h)),
        chunks(ceil_div(p.B, images) * bands) {}
};

// kSlots: 9, or 0 for windows of any size.
template <class T, int kSlots>
class Windows {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  using Matrices = LaneMatrices<T>;
  static constexpr int kCount = Arithmetic<T>::kCount;

 public:
  explicit Windows(const ConvAttentionParams& p)
      : p_(p),
        slots_(p.kernel * p.kernel),
        layout_(p),
        is_backward_(p.grad_out.data),
        values_(p, layout_, !is_backward_ || p.grad_logits),
        grads_(p, layout_, is_backward_),
        sums_(p, layout_, !is_backward_ || p.grad_v),
        weights_(slots_),
        weight_grads_(p.grad_logits ? slots_ : 0),
        rows_(p.grad_logits ? slots_ * kCount * kCount : 0),
        columns_(p.grad_logits ? slots_ * kCount * kCount : 0) {
    for (int s = 0; s < slots_; ++s)
      slot_[s] = s / p.kernel * layout_.row + s % p.kernel * layout_.pixel;
  }

  void compute(int64_t chunk) {
    const ChunkCut cut(p_);
    const int64_t band = chunk % cut.bands, first = chunk / cut.bands * cut.images;
    const int64_t rows = ceil_div(p_.H2, cut.bands), end = min(first + cut.images, p_.B);
    const Band own{band * rows, min((band + 1) * rows, p_.H2)};
    for (int64_t image = first; image < end; image += layout_.images)
      compute_band(image, min(layout_.images, end - image), own);
  }

 private:
  struct Band {
    int64_t begin, end;  // rows of windows
  };

  static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

  void compute_band(int64_t image, int64_t images, Band own) {
    const int64_t own_begin = own.begin ? own.begin * p_.stride - p_.padding : 0;
    const int64_t own_end = own.end < p_.H2 ? own.end * p_.stride - p_.padding : p_.H;
    const int64_t above = min(own.begin, (p_.kernel - 1) / p_.stride);
    const int64_t begin = own.begin - above;
    int64_t finished = 0;  // pixel rows of the step before
    for (int64_t w = begin, windows; w < own.end; w += windows) {
      const bool is_own = w >= own.begin;
      windows = min(layout_.window_rows, (is_own ? own.end : own.begin) - w);
      const int64_t rows = layout_.extent(p_, windows, p_.H), first = w * p_.stride - p_.padding;
      start_step(image, images, first, finished, rows);
      compute_step(image, images, w, windows, is_own && p_.grad_logits);
      finished = w + windows < own.end ? windows * p_.stride : rows;
      void* map = is_backward_ ? p_.grad_v : p_.y;
      for (int64_t i = 0; map && i < images; ++i)
        sums_.write(map, i, image + i, first, finished, own_begin, own_end);
    }
  }

  // After `finished` rows of pixels, the first ones are the last ones of the step before, of which
  // there is one image.
  void start_step(int64_t image, int64_t images, int64_t first, int64_t finished, int64_t rows) {
    const bool has_values = !is_backward_ || p_.grad_logits, has_sums = !is_backward_ || p_.grad_v;
    const int64_t kept = finished ? p_.kernel - 1 : 0;
    if (kept && has_values) values_.slide(finished, kept);
    if (kept && is_backward_) grads_.slide(finished, kept);
    if (kept && has_sums) sums_.slide(finished, kept);
    for (int64_t i = 0; i < images; ++i) {
      if (has_values) values_.read(p_.v, i, image + i, first, kept, rows);
      if (is_backward_) grads_.read(p_.grad_out, i, image + i, first, kept, rows);
      if (has_sums) sums_.clear(i, kept, rows);
    }
  }

  // All heads of all windows of the step: neighbours in memory, as many at once as there are lanes.
  void compute_step(int64_t image, int64_t images, int64_t first_row, int64_t rows,
                    bool need_logits) {
    const int64_t first = (image * p_.H2 + first_row) * p_.W2 * p_.h;
    const int64_t count = images * rows * p_.W2 * p_.h;
    place_ = {};
    for (int64_t i = 0; i < count; i += kCount) {
      const int lanes = static_cast<int>(min(kCount, count - i));
      for (int l = 0; l < lanes; ++l) next_window(base_[l], rows);
      for (int l = lanes; l < kCount; ++l) base_[l] = base_[0];
      is_backward_ ? backward(first + i, lanes, need_logits) : forward(first + i, lanes);
    }
  }

  // Where the pixels of the next window and head begin.
  void next_window(int64_t& base, int64_t rows) {
    base = place_.image * layout_.image + place_.row * p_.stride * layout_.row +
           place_.column * p_.stride * layout_.pixel + place_.head * layout_.channels;
    if (++place_.head < p_.h) return;
    place_.head = 0;
    if (++place_.column < p_.W2) return;
    place_.column = 0;
    if (++place_.row < rows) return;
    place_.row = 0;
    ++place_.image;
  }

  void load_weights(int64_t item, int lanes) {
    const int64_t size = int64_t{slots_} * slots_;
    weights_.load_from(static_cast<const T*>(p_.logits) + item * size, size, lanes);
    weights_.template softmax<kSlots>(p_.scale);
  }

  void forward(int64_t item, int lanes) {
    load_weights(item, lanes);
    for (int l = 0; l < lanes; ++l)
      mix<false>(weights_.lane(l), values_.data() + base_[l], sums_.data() + base_[l]);
  }

  void backward(int64_t item, int lanes, bool need_logits) {
    load_weights(item, lanes);
    for (int l = 0; p_.grad_v && l < lanes; ++l)
      mix<true>(weights_.lane(l), grads_.data() + base_[l], sums_.data() + base_[l]);
    if (!need_logits) return;
    multiply();
    weight_grads_.template softmax_backward<kSlots>(weights_, p_.scale);
    const int64_t size = int64_t{slots_} * slots_;
    weight_grads_.store_to(static_cast<T*>(p_.grad_logits) + item * size, size, lanes);
  }

  // to[p] += sum over q of weight[p, q] from[q]; transposed, to[q] += sum over p.
  template <bool kTransposed>
  void mix(const Scalar* weight, const Scalar* from, Scalar* to) const {
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

  // Gradients of the weights: [p, q] = <grads[p], values[q]>, for all lanes at once.
  void multiply() {
    constexpr int kBlock = kSlots ? 3 : 1;
    const int slots = kSlots ? kSlots : slots_;
    weight_grads_.clear();
    for (int64_t c = 0; c < p_.d; c += kCount) {
      transpose_slots(grads_.data() + c, rows_);
      transpose_slots(values_.data() + c, columns_);
      const int channels = static_cast<int>(min(kCount, p_.d - c));
      for (int p = 0; p < slots; p += kBlock)
        for (int q = 0; q < slots; q += kBlock) add_products<kBlock>(p, q, slots, channels);
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
  void add_products(int p, int q, int slots, int channels) {
    const Scalar *row = rows_ + p * kCount * kCount, *column = columns_ + q * kCount * kCount;
    V sum[kBlock][kBlock];
#pragma GCC unroll 3
    for (int i = 0; i < kBlock; ++i)
#pragma GCC unroll 3
      for (int j = 0; j < kBlock; ++j) sum[i][j] = load(weight_grads_.at((p + i) * slots + q + j));
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
      for (int j = 0; j < kBlock; ++j) store(weight_grads_.at((p + i) * slots + q + j), sum[i][j]);
  }

  struct Place {
    int64_t image = 0, row = 0, column = 0;
    int head = 0;
  };

  const ConvAttentionParams& p_;
  const int slots_;
  const StepLayout<T> layout_;
  const bool is_backward_;
  PixelBuffer<T> values_, grads_, sums_;  // v, the gradient of y, and what windows add up to
  Matrices weights_, weight_grads_;
  AlignedBuffer<Scalar> rows_, columns_;           // gradients and values: [slot][channel][lane]
  int64_t slot_[kMaxConvKernel * kMaxConvKernel];  // from a window's first pixel
  int64_t base_[kCount];                           // of the first pixel, for each lane
  Place place_;                                    // of the next window in the step
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
