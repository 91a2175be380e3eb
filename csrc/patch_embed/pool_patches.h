// The forward of patch_embed. The map is read line by line, in the order of memory, while the
// patches of a group of rows are pooled in a buffer that stays in the first cache; then the group
// is multiplied.
#pragma once

#include "../common/aligned_buffer.h"
#include "../common/comparisons.h"
#include "../common/products.h"
#include "patch_cut.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class T>
class PatchPooler {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  static constexpr int kCount = Arithmetic<T>::kCount;

 public:
  PatchPooler(const PatchEmbedParams& p, int64_t group)
      : p_(p),
        in_(whole_vectors<T>(p.C)),
        out_(whole_vectors<T>(p.width)),
        step_(p.x.stride[2]),
        ahead_(ceil_div<int64_t>(kAhead, larger(1, step_ * sizeof(T))) * step_),
        weight_(size(p.C * out_)),
        pooled_(size(group * p.columns * in_)),
        index_(p.is_max ? size(group * p.columns * in_) : 0) {
    zero<Scalar>(weight_, p.C * out_);
    const T* weight = static_cast<const T*>(p.weight);
    for (int64_t o = 0; o < p.width; ++o)
      for (int64_t c = 0; c < p.C; ++c) weight_[c * out_ + o] = to_float(weight[o * p.C + c]);
  }

  void run(int64_t row, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) pool_row(row + r, r * p_.columns * in_);
    const int64_t first = row * p_.columns, patches = rows * p_.columns;
    keep_pooled(first, patches);
    multiply(first, patches);
  }

 private:
  // The processor's own prefetching stops at the end of every page, and does not know slices.
  static constexpr int64_t kAhead = 8192;  // bytes

  static size_t size(int64_t count) { return static_cast<size_t>(count); }

  // `to`: where the row of patches begins in the buffers.
  void pool_row(int64_t row, int64_t to) {
    const int64_t image = row / p_.rows, t = row % p_.rows, height = pixels_of(p_, t, p_.H);
    for (int64_t i = 0; i < height; ++i) {
      const T* line = p_.x.row<T>(image, t * p_.patch + i, 0);
      for_each_piece(to, [&](int64_t column, int64_t pixels, int64_t c, auto lanes,
                             int64_t at) __attribute__((always_inline)) {
        const T* from = line + column * p_.patch * step_ + c;
        p_.is_max ? find_largest(from, pixels, lanes, i, at) : add(from, pixels, lanes, i, at);
      });
    }
    if (p_.is_max) return;
    for_each_piece(to, [&](int64_t, int64_t pixels, int64_t, auto, int64_t at) {
      const V count = broadcast(static_cast<Scalar>(height * pixels));
      store(pooled_ + at, load(pooled_ + at) / count);
    });
  }

  // body(column, its pixels in a line, channel, lanes, place in the buffers)
  template <class Body>
  inline __attribute__((always_inline)) void for_each_piece(int64_t to, const Body& body) const {
    for (int64_t column = 0; column < p_.columns; ++column, to += in_) {
      const int64_t pixels = pixels_of(p_, column, p_.W);
      for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        body(column, pixels, c, lanes, to + c);
      });
    }
  }

  template <class Lanes>
  V next(const T* from, Lanes lanes) const {
    __builtin_prefetch(from + ahead_);
    return load_lanes(from, lanes);
  }

  // Line i of a patch: some of its pixels, one vector of channels.
  template <class Lanes>
  void find_largest(const T* from, int64_t pixels, Lanes lanes, int64_t i, int64_t at) {
    const V one = broadcast(Scalar(1));
    V place = broadcast(static_cast<Scalar>(i * p_.patch)), largest, index;
    int64_t j = 0;
    if (i == 0) {
      largest = next(from, lanes);
      index = place;
      place = place + one;
      j = 1;
    } else {
      largest = load(pooled_ + at);
      index = load(index_ + at);
    }
    for (; j < pixels; ++j, place = place + one) {
      const V x = next(from + j * step_, lanes);
      index = select_exceeding(x, largest, place, index);
      largest = select_exceeding(x, largest, x, largest);
    }
    store(pooled_ + at, largest);
    store(index_ + at, index);
  }

  template <class Lanes>
  void add(const T* from, int64_t pixels, Lanes lanes, int64_t i, int64_t at) {
    V sum = i == 0 ? broadcast(Scalar(0)) : load(pooled_ + at);
    for (int64_t j = 0; j < pixels; ++j) sum = sum + next(from + j * step_, lanes);
    store(pooled_ + at, sum);
  }

  void keep_pooled(int64_t first, int64_t patches) const {
    T* pooled = static_cast<T*>(p_.pooled) + first * p_.C;
    uint8_t* index = p_.index + (p_.is_max ? first * p_.C : 0);
    for (int64_t i = 0; i < patches; ++i, pooled += p_.C) {
      for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        store_lanes(pooled + c, load(pooled_ + i * in_ + c), lanes);
      });
      for (int64_t c = 0; p_.is_max && c < p_.C; ++c)
        *index++ = static_cast<uint8_t>(index_[i * in_ + c]);
    }
  }

  void multiply(int64_t first, int64_t patches) const {
    T* z = static_cast<T*>(p_.z) + first * p_.width;
    const int64_t width = p_.width;
    products<T>(static_cast<const Scalar*>(pooled_), in_, 1, patches,
                static_cast<const Scalar*>(weight_), out_, static_cast<int>(out_ / kCount), p_.C,
                [=](int64_t patch, int j, V sum) __attribute__((always_inline)) {
                  const int64_t rest = width - j * kCount;
                  T* to = z + patch * width + j * kCount;
                  rest < kCount ? store_first(to, sum, static_cast<int>(rest)) : store(to, sum);
                });
  }

  const PatchEmbedParams& p_;
  const int64_t in_, out_;                // channels in whole vectors
  const int64_t step_, ahead_;            // from pixel to pixel of x; to what is prefetched
  AlignedBuffer<Scalar> weight_;          // transposed: [in][out]
  AlignedBuffer<Scalar> pooled_, index_;  // of a group: [patch][channel]
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
