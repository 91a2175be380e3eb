// Tokens gathered by address into the dense layouts that the products read, and results stored.
// `rows[t]` is where the e elements of token t start.
#pragma once

#include <cstdint>

#include "../aligned_buffer.h"
#include "cpu_products.h"
#include "tokens.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Where the rows of tokens start.
template <class T>
class AddressList {
 public:
  explicit AddressList(int64_t most) : rows_(most + kLanes) {}

  void clear() { count_ = 0; }
  void add(T* row) { rows_[count_++] = row; }
  void add(T* first, int64_t step, int64_t count) {
    for (int64_t t = 0; t < count; ++t) add(first + t * step);
  }

  int64_t count() const { return count_; }
  T* const* from(int64_t first) const { return rows_ + first; }
  T* operator[](int64_t i) const { return rows_[i]; }

 protected:
  AlignedBuffer<T*> rows_;
  int64_t count_ = 0;
};

// The same of rows to be read.
template <class T>
class RowAddresses : public AddressList<const T> {
  using Base = AddressList<const T>;

 public:
  using Base::add, Base::Base;

  void add(const AttentionTokens& tokens, int64_t image, int head, int64_t count) {
    const T* first =
        static_cast<const T*>(tokens.data) + image * tokens.stride[0] + head * tokens.stride[2];
    add(first, tokens.stride[1], count);
  }
  // Fills the last vector of lanes: they compute what nobody reads.
  void pad() {
    for (int i = 0; i < kLanes; ++i) this->rows_[this->count_ + i] = this->rows_[this->count_ - 1];
  }
};

template <class T>
using RowList = const T* const*;

// dst[t][word], rows padded with zeros to `words`, whole vectors.
template <class Arith, class T>
void gather_rows(float* dst, int words, RowList<T> rows, int64_t count, int e) {
  const int whole = e / (kLanes * Arith::kPerWord) * kLanes;
  for (int64_t t = 0; t < count; ++t, dst += words) {
    const T* row = rows[t];
    for (int w = 0; w < whole; w += kLanes) store(dst + w, Arith::load_vector(row, w));
    if (whole < words) store(dst + whole, Arith::load_words(row, whole, e));
  }
}

// dst[word][t], transposed: `vectors` vectors of tokens, `stride` floats between words. All rows of
// the last vector must be valid addresses.
template <class Arith, class T>
void gather_columns(float* dst, int stride, RowList<T> rows, int vectors, int words, int e) {
  for (int t = 0; t < vectors * kLanes; t += kLanes)
    for (int w = 0; w < words; w += kLanes) {
      F block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) block[i] = Arith::load_words(rows[t + i], w, e);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(dst + (w + i) * stride + t, block[i]);
    }
}

// The rows as the second factor of a product along tokens: dst[t][column], or with pairs
// dst[t / 2][column] = the word (row t, row t + 1), a missing row being zero.
template <class Arith, class T>
void gather_inner(float* dst, int columns, RowList<T> rows, int64_t count, int e) {
  if constexpr (Arith::kPerWord == 1) {
    gather_rows<Arith>(dst, columns, rows, count, e);
  } else {
    for (int c = 0; c < columns; c += 2 * kLanes) {
      const auto pair = [&](int64_t t, F high) __attribute__((always_inline)) {
        F first, second;
        Arith::interleave(Arith::load_words(rows[t], c / 2, e), high, first, second);
        store(dst + t / 2 * columns + c, first);
        store(dst + t / 2 * columns + c + kLanes, second);
      };
      int64_t t = 0;
      for (; t + 1 < count; t += 2) pair(t, Arith::load_words(rows[t + 1], c / 2, e));
      if (t < count) pair(t, zero());
    }
  }
}

// Whether rows of e elements go past the caches: each fills whole cache lines.
template <class T>
bool streams(const void* data, int e) {
  return reinterpret_cast<uintptr_t>(data) % 64 == 0 && e * sizeof(T) % 64 == 0;
}

// The first `valid` of C vectors' elements to memory. `streaming`: the row starts at a cache line
// and fills whole lines.
template <class T, int C>
inline __attribute__((always_inline)) void store_row(T* row, const F (&v)[C], int valid,
                                                     bool streaming) {
  if (valid < C * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      const int n = valid - j * kLanes;
      if (n >= kLanes)
        store(row + j * kLanes, v[j]);
      else if (n > 0)
        store_first(row + j * kLanes, v[j], n);
    }
    return;
  }
  if constexpr (C * kLanes * sizeof(T) % 64 == 0) {
    if (streaming) {
#pragma GCC unroll 4
      for (int j = 0; j < C; j += 4 / sizeof(T)) stream(row + j * kLanes, &v[j]);
      return;
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j + 1 < C; j += 2) store_both(row + j * kLanes, v[j], v[j + 1]);
  if constexpr (C % 2 == 1) store(row + (C - 1) * kLanes, v[C - 1]);
}

// factor * from + addend (null: none), e elements.
template <class T>
void store_scaled(T* to, const float* from, int e, float factor, const T* addend = nullptr) {
  const bool streaming = streams<T>(to, e);
  const auto scaled = [=](int c) __attribute__((always_inline)) {
    const F x = load(from + c) * broadcast(factor);
    return addend ? x + FloatArith::load_words(addend, c, e) : x;
  };
  int c = 0;
  if constexpr (sizeof(T) * 2 * kLanes == 64)
    for (; e - c >= 2 * kLanes; c += 2 * kLanes) {
      const F both[] = {scaled(c), scaled(c + kLanes)};
      store_row(to + c, both, 2 * kLanes, streaming);
    }
  for (; e - c >= kLanes; c += kLanes)
    streaming ? stream_one(to + c, scaled(c)) : store(to + c, scaled(c));
  if (c < e) store_first(to + c, scaled(c), e - c);
}
inline void store_scaled(double* to, const double* from, int e, double factor,
                         const double* addend = nullptr) {
  for (int c = 0; c < e; ++c) to[c] = factor * from[c] + (addend ? addend[c] : 0);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
