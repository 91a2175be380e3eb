// The dense depthwise stencil straight from maps, without a copy of their rows: a walk along a few
// rows of outputs at once, for one vector of channels. Its taps and the outputs that are still open
// stay in registers; a pixel that the walk meets goes into all outputs that see it.
//
// The walk touches a line of every pixel and comes back for the next vector, which the caches of
// a core serve but their prefetchers do not understand: Fetch asks for what comes next.
#pragma once

#include "../arithmetic.h"
#include "../streaming.h"
#include "cut.h"
#include "map.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Columns of outputs that are walked before the next vector of channels has its turn.
constexpr int64_t kWalkColumns = 32;

// Along R rows of outputs, from column `first` to `last`, of a map of `width` columns. The source
// has R + K - 1 rows of inputs, of which row 0 lies under the first tap of row 0 of outputs:
//
//   source.advance(j)   before column j, from first - K / 2 on
//   source.has(e)       whether row e lies in the map
//   source.at(e, j)     the pixel
//   source.meet(e, j, pixel)  after the outputs have had it
//
// emit(column, sums): sums[r] of taps times what they see, R of them. It should capture by value.
template <int K, int R, class V, class Source, class Emit>
inline __attribute__((always_inline)) void walk_rows(const V (&taps)[K][K], int64_t first,
                                                     int64_t last, int64_t width, Source& source,
                                                     const Emit& emit) {
  V open[R][K] = {};  // columns j - K / 2 .. j + K / 2
  for (int64_t j = first - K / 2; j < last + K / 2; ++j) {
    source.advance(j);
    if (j >= 0 && j < width) {
#pragma GCC unroll 10
      for (int e = 0; e < R + K - 1; ++e) {
        if (!source.has(e)) continue;
        const V pixel = source.at(e, j);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          if (e < r || e - r >= K) continue;
#pragma GCC unroll 7
          for (int m = 0; m < K; ++m) open[r][m] = fma(taps[e - r][K - 1 - m], pixel, open[r][m]);
        }
        source.meet(e, j, pixel);
      }
    }
    V done[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      done[r] = open[r][0];
#pragma GCC unroll 7
      for (int m = 0; m + 1 < K; ++m) open[r][m] = open[r][m + 1];
      open[r][K - 1] = V{};
    }
    if (j - K / 2 >= first) emit(j - K / 2, done);
  }
}

// body(first column, last) for the tiles of a row.
template <class Body>
void for_each_tile(int64_t columns, const Body& body) {
  const int64_t tile = ceil_div(columns, ceil_div(columns, kWalkColumns));
  for (int64_t first = 0; first < columns; first += tile)
    body(first, smaller(columns, first + tile));
}

// The taps of a vector of channels, from (K, K, C); turned round for the gradient of the input.
template <int K, class Scalar, class V, class Lanes>
inline __attribute__((always_inline)) void load_taps(const Scalar* weight, int64_t C, Lanes lanes,
                                                     bool turned, V (&taps)[K][K]) {
#pragma GCC unroll 49
  for (int tap = 0; tap < K * K; ++tap) {
    const int from = turned ? K * K - 1 - tap : tap;
    taps[tap / K][tap % K] = load_lanes(weight + from * C, lanes);
  }
}

// Memory that will be read soon, in order: asked for piece by piece while something else computes.
class Fetch {
 public:
  static Fetch nothing() { return Fetch(nullptr); }

  // From row i on, if the pixels of the map lie side by side: then they are read in this order.
  template <class T>
  static Fetch rows(const InputMap& map, int64_t image, int64_t i, int64_t W, int64_t C) {
    const bool is_dense = map.stride[2] == C && map.stride[1] == W * C;
    return Fetch(is_dense ? map.row<T>(image, i, 0) : nullptr);
  }

  // Of a map to be written, unless that goes past the caches.
  template <class T>
  static Fetch rows(const OutputMap& map, int64_t image, int64_t i, bool streams) {
    return Fetch(streams || !map.data ? nullptr : map.row<T>(image, i, 0));
  }

  __attribute__((always_inline)) void next(int64_t bytes) {
    if (!at_) return;
    for (int64_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(at_ + byte);
    at_ += bytes;
  }

 private:
  explicit Fetch(const void* at) : at_(static_cast<const char*>(at)) {}

  const char* at_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
