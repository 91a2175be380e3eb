// Products of small matrices in float (double), whose rows and steps lie anywhere: one operand is
// broadcast element by element, the other comes in vectors.
#pragma once

#include "arithmetic.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// finish(r, j, sum over k < inner of a[r * row + k * step] times vector j of b[k * b_row]).
template <class T, int R, int C, class Scalar, class Finish>
inline __attribute__((always_inline)) void product_block(const Scalar* a, int64_t row, int64_t step,
                                                         const Scalar* b, int64_t b_row,
                                                         int64_t inner, const Finish& finish) {
  using V = typename Arithmetic<T>::Vector;
  V acc[R][C] = {};
  for (int64_t k = 0; k < inner; ++k) {
    V columns[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) columns[j] = load(b + k * b_row + j * Arithmetic<T>::kCount);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V x = broadcast(a[r * row + k * step]);
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) acc[r][j] = fma(x, columns[j], acc[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) finish(r, j, acc[r][j]);
  }
}

// The same for all rows, C vectors from the first of b on, as many rows at a time as the registers
// hold.
template <class T, int C, class Scalar, class Finish>
void product_columns(const Scalar* a, int64_t row, int64_t step, int64_t rows, const Scalar* b,
                     int64_t b_row, int64_t inner, const Finish& finish) {
  constexpr int kRows = C == 1 ? 8 : kLanes == 16 ? 16 / C : 4;
  int64_t r = 0;
  const auto from = [&](int i, int j, auto x)
                        __attribute__((always_inline)) { finish(r + i, j, x); };
  for (; r + kRows <= rows; r += kRows)
    product_block<T, kRows, C>(a + r * row, row, step, b, b_row, inner, from);
  if constexpr (kRows > 4)
    for (; r + 4 <= rows; r += 4)
      product_block<T, 4, C>(a + r * row, row, step, b, b_row, inner, from);
  for (; r + 2 <= rows; r += 2)
    product_block<T, 2, C>(a + r * row, row, step, b, b_row, inner, from);
  for (; r < rows; ++r) product_block<T, 1, C>(a + r * row, row, step, b, b_row, inner, from);
}

// finish(r, vector, products) for all rows and `vectors` vectors.
template <class T, class Scalar, class Finish>
void products(const Scalar* a, int64_t row, int64_t step, int64_t rows, const Scalar* b,
              int64_t b_row, int vectors, int64_t inner, const Finish& finish) {
  int first = 0;
  const auto from = [&](int64_t r, int j, auto x)
                        __attribute__((always_inline)) { finish(r, first + j, x); };
  const auto at = [&]() { return b + first * Arithmetic<T>::kCount; };
  if (kLanes == 16)
    for (; first + 4 <= vectors; first += 4)
      product_columns<T, 4>(a, row, step, rows, at(), b_row, inner, from);
  for (; first + 2 <= vectors; first += 2)
    product_columns<T, 2>(a, row, step, rows, at(), b_row, inner, from);
  for (; first < vectors; ++first)
    product_columns<T, 1>(a, row, step, rows, at(), b_row, inner, from);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
