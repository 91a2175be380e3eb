// Softmax, transposition and sums over the lanes, of small dense blocks in float (double): for
// attention that keeps scores transposed, S[key][query] with the queries in the lanes.
#pragma once

#include <type_traits>

#include "../products.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

inline double log2(double x) { return __builtin_log2(x); }

// Products with the inner dimension in the lanes: sums[r * sum_row + c] += the product of row r of
// a with row c of b, both `vectors` vectors long.
template <class T, int R, int C, class Scalar>
inline __attribute__((always_inline)) void lane_product_block(const Scalar* a, int64_t a_row,
                                                              const Scalar* b, int64_t b_row,
                                                              int64_t vectors, Scalar* sums,
                                                              int64_t sum_row) {
  using V = typename Arithmetic<T>::Vector;
  V acc[R][C] = {};
  for (int64_t x = 0; x < vectors * Arithmetic<T>::kCount; x += Arithmetic<T>::kCount) {
    V columns[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) columns[c] = load(b + c * b_row + x);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V row = load(a + r * a_row + x);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = fma(row, columns[c], acc[r][c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sums[r * sum_row + c] += sum(acc[r][c]);
  }
}

template <class T, class Scalar>
void lane_products(const Scalar* a, int64_t a_row, int64_t rows, const Scalar* b, int64_t b_row,
                   int64_t columns, int64_t vectors, Scalar* sums, int64_t sum_row) {
  const auto strip = [&](int64_t r, auto height) __attribute__((always_inline)) {
    constexpr int R = decltype(height)::value;
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4)
      lane_product_block<T, R, 4>(a + r * a_row, a_row, b + c * b_row, b_row, vectors,
                                  sums + r * sum_row + c, sum_row);
    for (; c < columns; ++c)
      lane_product_block<T, R, 1>(a + r * a_row, a_row, b + c * b_row, b_row, vectors,
                                  sums + r * sum_row + c, sum_row);
  };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) strip(r, std::integral_constant<int, 4>{});
  for (; r < rows; ++r) strip(r, std::integral_constant<int, 1>{});
}

// Rows of `width` elements, `step` apart, with the rows in the lanes: to[c * pitch + row]. Lanes
// behind the last row repeat it. A whole vector is read behind the last element.
template <class T, class Scalar>
void transpose_rows(const Scalar* rows, int64_t step, int64_t count, int64_t width, Scalar* to,
                    int64_t pitch) {
  constexpr int kCount = Arithmetic<T>::kCount;
  for (int64_t t = 0; t < count; t += kCount)
    for (int64_t c = 0; c < width; c += kCount) {
      typename Arithmetic<T>::Vector block[kCount];
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i)
        block[i] = load(rows + (t + i < count ? t + i : count - 1) * step + c);
      if constexpr (kCount > 1) transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) store(to + (c + i) * pitch + t, block[i]);
    }
}

// Scores s[key * pitch + query], in units of log2, to weights of one sum over the keys.
// finish(query, largest score, sum of exponentials) takes a vector of queries.
template <class T, class Scalar, class Finish>
void softmax_over_keys(Scalar* s, int64_t keys, int64_t pitch, int64_t queries,
                       const Finish& finish) {
  using V = typename Arithmetic<T>::Vector;
  for (int64_t i = 0; i < queries; i += Arithmetic<T>::kCount) {
    Scalar* column = s + i;
    V top = load(column), total = broadcast(Scalar(0));
    for (int64_t m = 1; m < keys; ++m) top = max(load(column + m * pitch), top);
    for (int64_t m = 0; m < keys; ++m) {
      const V x = exp2(load(column + m * pitch) - top);
      store(column + m * pitch, x);
      total = total + x;
    }
    const V share = broadcast(Scalar(1)) / total;
    for (int64_t m = 0; m < keys; ++m) store(column + m * pitch, load(column + m * pitch) * share);
    finish(i, top, total);
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
