// Register-blocked matrix products, the innermost loops of the attention tile.
//
// One block holds R rows x C vectors of a result in registers and runs along the inner dimension:
// per step C vectors of b, R broadcast values of a, R * C multiply-adds. An Arith says what a word
// is and how two of them multiply, so that float32 and the bf16 dot product share every loop.
#pragma once

#include <cstddef>
#include <type_traits>

#include "../simd.h"
#include "../stages.h"
#include "../types.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// A word is one float.
struct FloatArith {
  using Element = float;
  static constexpr int kPerWord = 1;

  static F dot(F acc, F a, F b) { return fma(a, b, acc); }
  static F exp(F x) { return left_out(Stage::exponentials) ? x : exp2(x); }

  // kLanes words of a row, from word `word` on.
  template <class T>
  static F load_vector(const T* row, int word) {
    return load(row + word);
  }
  // The same of a row of e elements; zeros behind its end.
  template <class T>
  static F load_words(const T* row, int word, int e) {
    return e - word >= kLanes ? load(row + word) : load_first(row + word, e - word);
  }
};

#if defined(__AVX512BF16__)

// A word is a pair of bf16: two steps of the inner dimension at once, summed in float32.
struct Bf16Arith {
  using Element = bf16;
  static constexpr int kPerWord = 2;

  static F dot(F acc, F a, F b) { return dot_bf16(acc, a, b); }
  static F exp(F x) { return left_out(Stage::exponentials) ? x : exp2_short(x); }
  static F load_vector(const bf16* row, int word) { return load_pairs(row + 2 * word, 32); }
  static F load_words(const bf16* row, int word, int e) {
    return load_pairs(row + 2 * word, e - 2 * word);
  }
  static F pack(F low, F high) { return pack_pairs(low, high); }
  static F store_and_pack(bf16* low_row, F low, bf16* high_row, F high) {
    return hybrid::HYBRID_ISA::store_and_pack(low_row, low, high_row, high);
  }
  static void interleave(F low, F high, F& first, F& second) {
    interleave_pairs(low, high, first, second);
  }
};

#endif

// Rows for a product to fetch into the second-level cache on its way, one per step: bursts between
// products would wait for memory, these overlap with arithmetic.
struct PrefetchRows {
  const char* base;
  const int64_t* offsets;
  int64_t scale;      // bytes per unit of offset
  int64_t part_step;  // bytes from q to k and from k to v to fetch all three; 0: one row alone
  int bytes;          // of a row
  int count;

  // Inlined: g++ drops calls of a function that does nothing but prefetch.
  __attribute__((always_inline)) void fetch(int i) const {
    const char* row = base + offsets[i] * scale;
    const char* end = row + bytes;
    row -= reinterpret_cast<uintptr_t>(row) % 64;  // else the last line might be left out
    for (; row < end; row += 64) {
      __builtin_prefetch(row, 0, 2);
      if (part_step == 0) continue;
      __builtin_prefetch(row + part_step, 0, 2);
      __builtin_prefetch(row + 2 * part_step, 0, 2);
    }
  }
};

enum class Walk { kAlongRow, kAlongColumn };

// Rows of words, packed or where they lie in the map: row i starts at base + offsets[i] * scale
// bytes, and a pair of bf16 there need not be aligned.
struct WordRows {
  const void* base;
  const int64_t* offsets;
  int64_t scale;

  const char* operator[](int i) const {
    return static_cast<const char*>(base) + offsets[i] * scale;
  }
};

// acc[r][j] += a(r, k) b[j].
template <class Arith, int R, int C, class Word>
inline __attribute__((always_inline)) void multiply_step(F (&acc)[R][C], const Word& a,
                                                         const float* b, int k) {
  F columns[C];
#pragma GCC unroll 4
  for (int j = 0; j < C; ++j) columns[j] = load(b + j * kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const F x = broadcast(a(r, k));
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) acc[r][j] = Arith::dot(acc[r][j], x, columns[j]);
  }
}

// acc[r][j] += sum over k of a(r, k) b[k * b_step + j].
template <class Arith, int R, int C, class Word>
inline __attribute__((always_inline)) void multiply(F (&acc)[R][C], Word a, const float* b,
                                                    ptrdiff_t b_step, int steps,
                                                    const PrefetchRows& prefetch) {
  if (left_out(Stage::products)) steps = 0;
  const int fetches = prefetch.count;
  for (int k = 0; k < steps; ++k) {
    if (k < fetches) prefetch.fetch(k);
    multiply_step<Arith>(acc, a, b + k * b_step, k);
  }
  for (int k = steps; k < fetches; ++k) prefetch.fetch(k);
}

// The same, where
//   kAlongRow:     a(r, k) = a[r * a_step + k]
//   kAlongColumn:  a(r, k) = a[k * a_step + r]
// a_step: a number, or Int<N>, with which all rows of a block are reached from one address.
template <class Arith, Walk kWalk, int R, int C, class Step>
inline __attribute__((always_inline)) void multiply(F (&acc)[R][C], const float* a, Step a_step,
                                                    const float* b, ptrdiff_t b_step, int steps,
                                                    const PrefetchRows& prefetch) {
  const auto word = [=](int r, int k) __attribute__((always_inline)) {
    return kWalk == Walk::kAlongRow ? a[r * a_step + k] : a[k * a_step + r];
  };
  multiply<Arith>(acc, word, b, b_step, steps, prefetch);
}

// The same, where a(r, k) = word k of a[first + r].
template <class Arith, int R, int C>
inline __attribute__((always_inline)) void multiply(F (&acc)[R][C], const WordRows& a, int first,
                                                    const float* b, ptrdiff_t b_step, int steps,
                                                    const PrefetchRows& prefetch) {
  const char* row[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) row[r] = a[first + r];
  const auto word = [&](int r, int k) __attribute__((always_inline)) {
    float x;
    __builtin_memcpy(&x, row[r] + k * sizeof x, sizeof x);
    return x;
  };
  multiply<Arith>(acc, word, b, b_step, steps, prefetch);
}

// Sums beside each other that a block of few products needs: one multiply-add takes as long as a
// dozen others need to begin.
constexpr int chains(int products) { return products >= 12 ? 1 : products >= 6 ? 2 : 4; }

// acc[r][j] = sum over k of a(r, k) b[k * b_step + j], without fetching anything; kWalk as above.
template <class Arith, Walk kWalk, int R, int C>
inline __attribute__((always_inline)) void multiply_in_chains(F (&acc)[R][C], const float* a,
                                                              ptrdiff_t a_step, const float* b,
                                                              ptrdiff_t b_step, int steps) {
  if (left_out(Stage::products)) steps = 0;
  const auto word = [=](int r, int k) __attribute__((always_inline)) {
    return kWalk == Walk::kAlongRow ? a[r * a_step + k] : a[k * a_step + r];
  };
  constexpr int kChains = chains(R * C);
  F sums[kChains][R][C] = {};
  int k = 0;
  for (; k + kChains <= steps; k += kChains) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i)
      multiply_step<Arith>(sums[i], word, b + (k + i) * b_step, k + i);
  }
  for (; k < steps; ++k) multiply_step<Arith>(sums[0], word, b + k * b_step, k);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      acc[r][j] = sums[0][r][j];
#pragma GCC unroll 4
      for (int i = 1; i < kChains; ++i) acc[r][j] = acc[r][j] + sums[i][r][j];
    }
}

// Rows of a block of C vectors: as many as the registers hold, and 7 is a side of the usual window.
template <int C>
constexpr int kBlockRows = kLanes == 16 ? (C == 1 ? 14 : 7)
                                        : (C == 1   ? 8
                                           : C == 2 ? 6
                                                    : 4);
constexpr int kBlockVectors = 3;

template <int N>
using Int = std::integral_constant<int, N>;

// body(first, Int<R>) over all rows, in blocks of kMax and then of 3 and 1.
template <int kMax, class Body>
inline __attribute__((always_inline)) void for_row_blocks(int rows, Body body) {
  int r = 0;
  for (; rows - r >= kMax; r += kMax) body(r, Int<kMax>{});
  if constexpr (kMax > 8)
    if (rows - r >= 7) body(r, Int<7>{}), r += 7;
  for (; rows - r >= 3; r += 3) body(r, Int<3>{});
  for (; r < rows; ++r) body(r, Int<1>{});
}

// body(first, Int<R>) over all rows, in blocks for C vectors. With 16 lanes they are of 7 and 8
// rows, which leave no remainder of 42 rows and more; two of 7 make one where C is 1.
template <int C, class Body>
inline __attribute__((always_inline)) void for_even_blocks(int rows, Body body) {
  int r = 0;
  if constexpr (kLanes == 16) {
    const int spare = rows - 7 * ceil_div(rows, 8);  // rows beyond as many sevens
    for (int eights = spare < 0 ? rows / 8 : spare; eights > 0; --eights, r += 8) body(r, Int<8>{});
  }
  for_row_blocks<kBlockRows<C>>(
      rows - r, [&](int i, auto block) __attribute__((always_inline)) { body(r + i, block); });
}

inline int column_blocks(int vectors) { return ceil_div(vectors, kBlockVectors); }

// body(first, Int<C>) over all vectors, in blocks of nearly equal width.
template <class Body>
inline __attribute__((always_inline)) void for_column_blocks(int vectors, Body body) {
  const int blocks = column_blocks(vectors);
  for (int i = 0; i < blocks; ++i) {
    const int first = vectors * i / blocks, width = vectors * (i + 1) / blocks - first;
    if (width == 3) body(first, Int<3>{});
    if (width == 2) body(first, Int<2>{});
    if (width == 1) body(first, Int<1>{});
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
