// patch_embed, one row of patches of an image at a time: its pooled pixels stay in a buffer.
#pragma once

#include <string.h>

#include <type_traits>

#include "../common/aligned_buffer.h"
#include "../common/comparisons.h"
#include "../common/partial_sums.h"
#include "../common/products.h"
#include "patch_embed.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kChunkPixels = 8192;

inline int64_t chunk_rows(const PatchEmbedParams& p) {
  const int64_t pixels = p.W * p.patch;
  return pixels < kChunkPixels ? kChunkPixels / pixels : 1;
}

template <class T>
class PatchRows {
 public:
  using Scalar = typename Arithmetic<T>::Scalar;

  explicit PatchRows(const PatchEmbedParams& p)
      : p_(p),
        in_(whole_vectors<T>(p.C)),
        out_(whole_vectors<T>(p.width)),
        weight_(size(p.width * in_)),
        transposed_(size(p.C * out_)),
        pooled_(size(p.columns * in_)),
        index_(size(p.columns * in_)),
        grads_(p.grad.data ? size(p.columns * p.width) : 0) {
    zero(&weight_[0], p.width * in_);
    zero(&transposed_[0], p.C * out_);
    for (int64_t i = 0; i < p.patch * p.patch; ++i) {
      read_[i] = i / p.patch * p.x.stride[1] + i % p.patch * p.x.stride[2];
      written_[i] = (i / p.patch * p.W + i % p.patch) * p.C;
    }
    for (int64_t o = 0; o < p.width; ++o)
      for (int64_t i = 0; i < p.C; ++i)
        weight_[o * in_ + i] = transposed_[i * out_ + o] =
            to_float(static_cast<const T*>(p.weight)[o * p.C + i]);
  }

  static int64_t sums(const PatchEmbedParams& p) {
    return p.grad_weight ? p.width * whole_vectors<T>(p.C) : 0;
  }

  void forward(int64_t image, int64_t row) {
    pool(image, row);
    if (p_.index) store_index(image, row);
    T* z = static_cast<T*>(p_.z) + (image * p_.rows + row) * p_.columns * p_.width;
    const auto keep = [&](int64_t column, int j, V sum) __attribute__((always_inline)) {
      const int64_t rest = p_.width - j * kCount;
      T* to = z + column * p_.width + j * kCount;
      rest < kCount ? store_first(to, sum, static_cast<int>(rest)) : store(to, sum);
    };
    products<T>(&pooled_[0], in_, 1, p_.columns, &transposed_[0], out_,
                static_cast<int>(out_ / kCount), p_.C, keep);
  }

  // weight_sums: of the chunk, to be added to; null if not asked for.
  void backward(int64_t image, int64_t row, Scalar* weight_sums) {
    load_grads(image, row);
    if (weight_sums) {
      p_.is_max ? find_largest(image, row) : pool(image, row);
      multiply(1, p_.width, p_.width, pooled_, p_.columns, [&](int64_t o, int64_t c, V sum) {
        Scalar* to = weight_sums + o * in_ + c;
        store(to, load(to) + sum);
      });
    }
    if (!p_.grad_x) return;
    multiply(p_.width, 1, p_.columns, weight_, p_.width,
             [&](int64_t column, int64_t c, V sum) { store(pooled_ + column * in_ + c, sum); });
    spread(image, row);
  }

 private:
  using V = typename Arithmetic<T>::Vector;
  static constexpr int kCount = Arithmetic<T>::kCount;

  struct Range {
    int64_t begin, end;
  };

  static size_t size(int64_t count) { return static_cast<size_t>(count); }

  Range patch(int64_t t, int64_t limit) const {
    const int64_t end = (t + 1) * p_.patch;
    return {t * p_.patch, end < limit ? end : limit};
  }

  // grads_ (row, step) times rows of `inner` vectors, channels of x.
  template <class Keep>
  void multiply(int64_t row, int64_t step, int64_t rows, const Scalar* b, int64_t inner,
                const Keep& keep) const {
    products<T>(&grads_[0], row, step, rows, b, in_, static_cast<int>(in_ / kCount), inner,
                [&](int64_t r, int j, V sum)
                    __attribute__((always_inline)) { keep(r, j * kCount, sum); });
  }

  void pool(int64_t image, int64_t row) {
    const Range rows = patch(row, p_.H);
    for (int64_t column = 0; column < p_.columns; ++column) {
      const Range columns = patch(column, p_.W);
      const T* first = p_.x.row<T>(image, rows.begin, 0) + columns.begin * p_.x.stride[2];
      const int64_t height = rows.end - rows.begin, width = columns.end - columns.begin;
      for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        const int64_t to = column * in_ + c;
        if (p_.is_max)
          take_largest(first + c, height, width, lanes, to);
        else
          take_mean(first + c, height, width, lanes, to);
      });
    }
  }

  template <class Lanes>
  void take_largest(const T* first, int64_t height, int64_t width, Lanes lanes, int64_t to) {
    V largest = load_lanes(first, lanes), index = broadcast(Scalar(0));
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j) {
        const V x = load_lanes(first + i * p_.x.stride[1] + j * p_.x.stride[2], lanes);
        const V place = broadcast(static_cast<Scalar>(i * p_.patch + j));
        index = select_exceeding(x, largest, place, index);
        largest = select_exceeding(x, largest, x, largest);
      }
    store(pooled_ + to, largest);
    store(index_ + to, index);
  }

  template <class Lanes>
  void take_mean(const T* first, int64_t height, int64_t width, Lanes lanes, int64_t to) {
    V sum = broadcast(Scalar(0));
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j)
        sum = sum + load_lanes(first + i * p_.x.stride[1] + j * p_.x.stride[2], lanes);
    store(pooled_ + to, sum / broadcast(static_cast<Scalar>(height * width)));
  }

  // The largest pixels again, where the forward found them.
  void find_largest(int64_t image, int64_t row) {
    const uint8_t* index = index_row(image, row);
    const T* first = p_.x.row<T>(image, row * p_.patch, 0);
    for (int64_t column = 0; column < p_.columns; ++column, index += p_.C)
      for (int64_t c = 0; c < p_.C; ++c)
        pooled_[column * in_ + c] =
            to_float(first[column * p_.patch * p_.x.stride[2] + read_[index[c]] + c]);
  }

  // pooled_, now the gradients of the patches -> the pixels of the row, and those without a patch.
  void spread(int64_t image, int64_t row) const {
    const Range rows = patch(row, p_.H);
    const int64_t end = row + 1 < p_.rows ? rows.end : p_.H, line = p_.W * p_.C;
    T* to = static_cast<T*>(p_.grad_x) + (image * p_.H + rows.begin) * line;
    if (p_.is_max) {
      clear(to, (end - rows.begin) * line);
      spread_largest(image, row, to);
    } else {
      spread_means(rows, to);
      for (int64_t y = 1; y < rows.end - rows.begin; ++y)
        memcpy(to + y * line, to, line * sizeof(T));
      clear(to + (rows.end - rows.begin) * line, (end - rows.end) * line);
    }
  }

  void spread_largest(int64_t image, int64_t row, T* to) const {
    const uint8_t* index = index_row(image, row);
    for (int64_t column = 0; column < p_.columns; ++column, index += p_.C)
      for (int64_t c = 0; c < p_.C; ++c)
        to[column * p_.patch * p_.C + written_[index[c]] + c] = narrow(pooled_[column * in_ + c]);
  }

  // One line of pixels: all of a row of patches are the same.
  void spread_means(Range rows, T* to) const {
    const T* end = to + p_.W * p_.C;
    for (int64_t column = 0; column < p_.columns; ++column) {
      const Range columns = patch(column, p_.W);
      const int64_t pixels = (rows.end - rows.begin) * (columns.end - columns.begin);
      for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        const V grad = load(pooled_ + column * in_ + c) / broadcast(static_cast<Scalar>(pixels));
        for (int64_t x = 0; x < columns.end - columns.begin; ++x)
          store_lanes(to + x * p_.C + c, grad, lanes);
      });
      to += (columns.end - columns.begin) * p_.C;
    }
    clear(to, end - to);
  }

  static T narrow(Scalar x) {
    if constexpr (std::is_same_v<T, Scalar>)
      return x;
    else
      return from_float<T>(x);
  }

  static void clear(T* to, int64_t count) { memset(to, 0, count * sizeof(T)); }

  void load_grads(int64_t image, int64_t row) {
    const T* from = p_.grad.row<T>(image, row, 0);
    for (int64_t column = 0; column < p_.columns; ++column, from += p_.grad.stride[2])
      for (int64_t c = 0; c < p_.width; ++c) grads_[column * p_.width + c] = to_float(from[c]);
  }

  uint8_t* index_row(int64_t image, int64_t row) const {
    return p_.index + (image * p_.rows + row) * p_.columns * p_.C;
  }
  void store_index(int64_t image, int64_t row) const {
    uint8_t* to = index_row(image, row);
    for (int64_t column = 0; column < p_.columns; ++column, to += p_.C)
      for (int64_t c = 0; c < p_.C; ++c) to[c] = static_cast<uint8_t>(index_[column * in_ + c]);
  }
  const PatchEmbedParams& p_;
  int64_t read_[256], written_[256];  // where a pixel lies from its patch's first one: in x, in dx
  const int64_t in_, out_;            // channels in whole vectors
  AlignedBuffer<Scalar> weight_, transposed_;     // [out][in], [in][out]
  AlignedBuffer<Scalar> pooled_, index_, grads_;  // [column][channel]; index_ of the largest
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
