// Tokens gathered by address into the dense layouts that the products read. `rows[t]` is where the
// e elements of token t start.
#pragma once

#include "../atrous_attention/cpu_products.h"
#include "../common/aligned_buffer.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

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
    for (int64_t t = 0; t < count; t += 2, dst += columns)
      for (int c = 0; c < columns; c += 2 * kLanes) {
        const F low = Arith::load_words(rows[t], c / 2, e);
        const F high = t + 1 < count ? Arith::load_words(rows[t + 1], c / 2, e) : zero();
        F first, second;
        Arith::interleave(low, high, first, second);
        store(dst + c, first);
        store(dst + c + kLanes, second);
      }
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
