// A dense depthwise stencil over whole maps by walks: a job is a few rows of outputs, all channels,
// so that memory is met nearly in its order.
#pragma once

#include <type_traits>

#include "rows.h"
#include "walk.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Rows of outputs in one walk: with K = 3, registers have room for four.
constexpr int64_t rows_at_once(int64_t side) { return side <= 3 ? 4 : 2; }

inline int64_t walks_per_image(int64_t rows, int64_t side) {
  return rows < rows_at_once(side) ? rows : ceil_div(rows, rows_at_once(side));
}

// Whether a map is better streamed, if whole lines are written at a time.
template <class T>
bool streams_vectors(const OutputMap& map, int64_t B, int64_t H) {
  constexpr bool kWholeLines = sizeof(T) * Arithmetic<T>::kCount >= kLine;
  return kWholeLines && streams_map<T>(map, B, H);
}

// N neighbouring rows of a map for a vector of channels, as a source of a walk.
template <class T, int N, class Lanes>
class RowsOfMap {
 public:
  // Rows from `first` on, of a map of `height` rows.
  RowsOfMap(const InputMap& map, int64_t height, int64_t image, int64_t first, int64_t c,
            Lanes lanes)
      : lanes_(lanes), step_(map.stride[2]) {
#pragma GCC unroll 10
    for (int e = 0; e < N; ++e) {
      const int64_t i = first + e;
      rows_[e] = i >= 0 && i < height ? map.row<T>(image, i, c) : nullptr;
    }
  }

  __attribute__((always_inline)) bool has(int e) const { return rows_[e]; }
  __attribute__((always_inline)) auto at(int e, int64_t j) const {
    return load_lanes(rows_[e] + j * step_, lanes_);
  }
  __attribute__((always_inline)) void advance(int64_t) const {}
  template <class V>
  __attribute__((always_inline)) void meet(int, int64_t, V) const {}

 private:
  const Lanes lanes_;
  const int64_t step_;
  const T* rows_[N];
};

// The stencil of a walk: from maps of T that lie in the source to y, with taps (K, K, C).
template <class T>
struct WalkedStencil {
  const typename Arithmetic<T>::Scalar* weight;
  OutputMap y;
  bool streams;
};

// What a walk will read after its own rows, besides the next rows of y.
struct Upcoming {
  Fetch input, tokens;
  int64_t token_bytes;  // for every column of outputs
};

// R rows of outputs from row i on, of which the first `skipped` belong to another walk.
//   source(column, c, lanes)     row 0 lies under the first tap of row i; columns from `column` on
//   finish(c, lanes)(sum)        of a vector of channels: what is to be stored
template <class T, int K, int R, class NewSource, class Finish>
void convolve_walk(const WalkedStencil<T>& p, int64_t image, int64_t i, int64_t skipped,
                   Upcoming ahead, const NewSource& source, const Finish& finish) {
  using V = typename Arithmetic<T>::Vector;
  constexpr int64_t kBytes = R * Arithmetic<T>::kCount * sizeof(T);
  Fetch y_ahead = Fetch::rows<T>(p.y, image, i + R, p.streams);
  const int64_t W = p.y.W, C = p.y.C;
  for_each_tile(W, [&](int64_t first, int64_t last) {
    for_each_vector<T>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      V taps[K][K];
      load_taps<K>(p.weight + c, C, lanes, false, taps);
      T* y = p.y.template row<T>(image, i, c);
      const bool streams = p.streams;
      const auto value = finish(c, lanes);
      Upcoming next = ahead;  // in registers
      Fetch to_y = y_ahead;
      auto rows = source(first - K / 2, c, lanes);
      walk_rows<K, R>(taps, first, last, W, rows,
                      [=, &next, &to_y](int64_t j, const V(&sums)[R])
                          __attribute__((always_inline)) {
                            next.input.next(kBytes);
                            next.tokens.next(next.token_bytes);
                            to_y.next(kBytes);
                            T* to = y + j * C;
#pragma GCC unroll 4
                            for (int r = 0; r < R; ++r, to += W * C)
                              if (r >= skipped) stream_lanes(to, value(sums[r]), lanes, streams);
                          });
      ahead = next;
      y_ahead = to_y;
    });
  });
}

// walk(rows at once, image, first row, rows of it that are another's) for walks begin .. end - 1.
// Of maps with fewer rows than that, kLeast at once.
template <int K, int kLeast, class Walk>
void for_each_walk(int64_t H, int64_t begin, int64_t end, const Walk& walk) {
  constexpr int kRows = rows_at_once(K);
  const int64_t walks = walks_per_image(H, K);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t image = index / walks, number = index % walks;
    if (H < kRows) {
      walk(std::integral_constant<int, kLeast>{}, image, number, 0);
    } else {  // the last one begins early enough to have all its rows
      const int64_t i = smaller(number * kRows, H - kRows);
      walk(std::integral_constant<int, kRows>{}, image, i, number * kRows - i);
    }
  }
  stream_fence();
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
