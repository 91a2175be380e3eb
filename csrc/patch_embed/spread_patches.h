// The backward of patch_embed, by groups of rows of patches: products for the gradients of the
// weight and of the pooled pixels, which are then spread over the map, line by line.
#pragma once

#include <string.h>

#include "../common/comparisons.h"
#include "../common/products.h"
#include "../common/stencil/rows.h"
#include "patch_cut.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class T>
class PatchSpreader {
 public:
  using Scalar = typename Arithmetic<T>::Scalar;

  PatchSpreader(const PatchEmbedParams& p, int64_t group)
      : p_(p),
        in_(whole_vectors<T>(p.C)),
        out_(whole_vectors<T>(p.width)),
        weight_(p.grad_x ? size(p.width * in_) : 0),
        grads_(size(group * p.columns * out_)),
        pooled_(size(group * p.columns * in_)),
        index_(p.is_max && p.grad_x ? size(group * p.columns * in_) : 0) {
    if (p.grad_x) widen(static_cast<const T*>(p.weight), p.width, weight_);
  }

  // weight_sums: of the part, to be added to; null if not asked for.
  void run(int64_t row, int64_t rows, Scalar* weight_sums) {
    const int64_t first = row * p_.columns, patches = rows * p_.columns;
    for (int64_t r = 0; r < rows; ++r)
      load_row(p_.grad.row<T>((row + r) / p_.rows, (row + r) % p_.rows, 0), p_.grad.stride[2],
               p_.columns, p_.width, grads_ + r * p_.columns * out_, out_, Identity{});
    if (weight_sums) add_to(weight_sums, first, patches);
    if (!p_.grad_x) return;
    find_grads(patches);
    if (p_.is_max) load_index(first, patches);
    for (int64_t r = 0; r < rows; ++r) spread(row + r, r * p_.columns * in_);
  }

 private:
  using V = typename Arithmetic<T>::Vector;
  static constexpr int kCount = Arithmetic<T>::kCount;

  static size_t size(int64_t count) { return static_cast<size_t>(count); }

  // Contiguous rows of channels of x, to whole vectors.
  void widen(const T* from, int64_t rows, Scalar* to) const {
    load_row(from, p_.C, rows, p_.C, to, in_, Identity{});
  }

  void add_to(Scalar* weight_sums, int64_t first, int64_t patches) {
    widen(static_cast<const T*>(p_.pooled) + first * p_.C, patches, pooled_);
    const int64_t in = in_;
    products<T>(static_cast<const Scalar*>(grads_), 1, out_, p_.width,
                static_cast<const Scalar*>(pooled_), in_, static_cast<int>(in_ / kCount), patches,
                [=](int64_t o, int j, V sum) __attribute__((always_inline)) {
                  Scalar* to = weight_sums + o * in + j * kCount;
                  store(to, load(to) + sum);
                });
  }

  // The gradients of the pooled pixels, in their place.
  void find_grads(int64_t patches) {
    const int64_t in = in_;
    Scalar* pooled = pooled_;
    products<T>(static_cast<const Scalar*>(grads_), out_, 1, patches,
                static_cast<const Scalar*>(weight_), in_, static_cast<int>(in_ / kCount), p_.width,
                [=](int64_t patch, int j, V sum) __attribute__((always_inline)) {
                  store(pooled + patch * in + j * kCount, sum);
                });
  }

  void load_index(int64_t first, int64_t patches) {
    const uint8_t* index = p_.index + first * p_.C;
    for (int64_t i = 0; i < patches; ++i)
      for (int64_t c = 0; c < p_.C; ++c) index_[i * in_ + c] = *index++;
  }

  // The lines of a row of patches, and those below the last one. `from`: where it begins in the
  // buffers.
  void spread(int64_t row, int64_t from) const {
    const int64_t t = row % p_.rows, height = pixels_of(p_, t, p_.H), line = p_.W * p_.C;
    T* to = static_cast<T*>(p_.grad_x) + (row / p_.rows * p_.H + t * p_.patch) * line;
    if (!p_.is_max) spread_means(from, height, to);
    for (int64_t i = 0; i < height; ++i)
      if (p_.is_max)
        spread_largest(from, i, to + i * line);
      else if (i > 0)
        memcpy(to + i * line, to, line * sizeof(T));
    if (t + 1 == p_.rows) clear(to + height * line, (p_.H - t * p_.patch - height) * line);
  }

  // Line i of the patches: each pixel has the gradients of those channels that are largest there.
  void spread_largest(int64_t from, int64_t i, T* to) const {
    const V one = broadcast(Scalar(1)), none = broadcast(Scalar(0));
    const V first = broadcast(static_cast<Scalar>(i * p_.patch));
    const Scalar *grads = pooled_ + from, *index = index_ + from;
    const int64_t C = p_.C;
    for_each_patch(to, [=](int64_t at, int64_t pixels, auto lanes, T* pixel) {
      const V grad = load(grads + at), place = load(index + at);
      V own = first;
      for (int64_t j = 0; j < pixels; ++j, own = own + one)
        store_lanes(pixel + j * C, select_equal(place, own, grad, none), lanes);
    });
  }

  // A line of patches of `height` lines: they are all the same.
  void spread_means(int64_t from, int64_t height, T* to) const {
    const Scalar* grads = pooled_ + from;
    const int64_t C = p_.C;
    for_each_patch(to, [=](int64_t at, int64_t pixels, auto lanes, T* pixel) {
      const V share = load(grads + at) / broadcast(static_cast<Scalar>(height * pixels));
      for (int64_t j = 0; j < pixels; ++j) store_lanes(pixel + j * C, share, lanes);
    });
  }

  // body(place in a row of the buffers, pixels, lanes, where the first one is written) along a
  // line, whose pixels beyond the patches are cleared. It should capture by value: what it refers
  // to would be loaded again after every store.
  template <class Body>
  inline __attribute__((always_inline)) void for_each_patch(T* to, const Body& body) const {
    const int64_t columns = p_.columns, C = p_.C, W = p_.W, patch = p_.patch, width = in_;
    T* end = to + W * C;
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t pixels = smaller(patch, W - column * patch);
      for_each_vector<T>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        body(column * width + c, pixels, lanes, to + c);
      });
      to += pixels * C;
    }
    clear(to, end - to);
  }

  static void clear(T* to, int64_t count) { memset(to, 0, count * sizeof(T)); }

  const PatchEmbedParams& p_;
  const int64_t in_, out_;                        // channels in whole vectors
  AlignedBuffer<Scalar> weight_;                  // [out][in]
  AlignedBuffer<Scalar> grads_, pooled_, index_;  // of a group: [patch][channel]
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
