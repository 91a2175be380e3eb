// Tokens gathered from memory into the dense layouts that the products read.
#pragma once

#include "../common/attention/cpu_rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// dst[t][word] = row t. Rows are e elements, `words` words padded with zeros to whole vectors.
template <class Arith, class T>
void pack_rows(float* dst, int words, const T* base, const int64_t* offsets, int count, int e) {
  if (left_out(Stage::packing)) return;
  const auto pack = [=](auto vectors) {  // rows of whole vectors, their number known
    for (int t = 0; t < count; ++t)
      for (int w = 0; w < vectors * kLanes; w += kLanes)
        store(dst + t * vectors * kLanes + w, Arith::load_vector(base + offsets[t], w));
  };
  constexpr int kVector = kLanes * Arith::kPerWord;
  if (e == kVector) return pack(Int<1>{});
  if (e == 2 * kVector) return pack(Int<2>{});
  if (e == 4 * kVector) return pack(Int<4>{});
  const int whole = e / kVector * kLanes;
  for (int t = 0; t < count; ++t) {
    const T* row = base + offsets[t];
    for (int w = 0; w < whole; w += kLanes) store(dst + t * words + w, Arith::load_vector(row, w));
    if (whole < words) store(dst + t * words + whole, Arith::load_words(row, whole, e));
  }
}

// dst[word][t] = row t, transposed: `vectors` vectors of tokens, `stride` floats between words.
template <class Arith, class T>
void pack_columns(float* dst, int stride, const T* base, const int64_t* offsets, int vectors,
                  int words, int e) {
  if (left_out(Stage::packing)) return;
  for (int t = 0; t < vectors * kLanes; t += kLanes)
    for (int w = 0; w < words; w += kLanes) {
      F block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) block[i] = Arith::load_words(base + offsets[t + i], w, e);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(dst + (w + i) * stride + t, block[i]);
    }
}

// dst[t / 2][column] = the word (row t, row t + 1) of that column, t even; a missing row is zero.
template <class Arith, class T>
void pack_row_pairs(float* dst, int columns, const T* base, const int64_t* offsets, int count,
                    int e) {
  if (left_out(Stage::packing)) return;
  for (int t = 0; t < count; t += 2, dst += columns)
    for (int c = 0; c < columns; c += 2 * kLanes) {
      const F low = Arith::load_words(base + offsets[t], c / 2, e);
      const F high = t + 1 < count ? Arith::load_words(base + offsets[t + 1], c / 2, e) : zero();
      F first, second;
      Arith::interleave(low, high, first, second);
      store(dst + c, first);
      store(dst + c + kLanes, second);
    }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
