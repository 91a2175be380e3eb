// How attention is cut for the caches: keys in tiles, queries in panels, and what forward and
// backward share of one tile against one panel.
//
// Scores are kept transposed, S[key][query] with the queries in the lanes: maximum, sum and
// log-sum-exp of a query then need no operation across lanes, and the same array serves as the
// broadcast side of P V, dV = P^T dO, dK = dS^T Q (along its rows) and dQ = dS K (down its
// columns). S of a tile and a panel stays in the first-level cache. Scores are in units of log2.
//
// With Bf16Arith a word holds a pair along the inner dimension: channels in Q K^T and dO V^T, keys
// in P V and dS K, queries in P^T dO and dS^T Q. P and dS are rounded to bf16 for these products,
// sums and the softmax stay in float32.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu_prefetcher.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr int kTileKeys = 80, kPanelQueries = 96;

// [0, size) in equal parts of at most `largest`; with `step` > 1 in multiples of it.
struct Parts {
  int64_t size, number, step;

  Parts() : Parts(0, 1) {}
  Parts(int64_t size, int64_t largest, int64_t step = 1)
      : size(size), number(std::max<int64_t>(ceil_div(size, largest), 1)), step(step) {}

  int64_t begin(int64_t i) const {
    return std::min(ceil_div(size, step) * i / number * step, size);
  }
  int64_t end(int64_t i) const { return begin(i + 1); }
};

// Tiles start at even keys, so that pairs of keys do not straddle them.
inline Parts key_tiles(int64_t keys) { return {keys, kTileKeys, 2}; }
inline Parts query_panels(int64_t queries) { return {queries, kPanelQueries, kLanes}; }

// The most that an attention has of everything; what it has at a time is in its list of rows.
struct AttentionSizes {
  int64_t queries, keys;
  int d, dv;
  double scale;
  int prefetched;  // runs of rows to be fetched ahead
};

// What the log-sum-exp of data of type T is kept in.
template <class T>
using Statistic = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Rows of one width in the three layouts.
template <class Arith>
struct Width {
  int e;        // elements
  int words;    // of a row, whole vectors
  int columns;  // elements, whole vectors of words
  int steps;    // words that are not all padding

  explicit Width(int e)
      : e(e),
        words(round_up_to_lanes(ceil_div<int>(e, Arith::kPerWord))),
        columns(words * Arith::kPerWord),
        steps(ceil_div<int>(e, Arith::kPerWord)) {}
};

// finish(t, acc) takes products a b^T of C vectors of queries with the keys t, t + 1, ..., in
// blocks acc[R][C]; a: [key][word], b: [word][query].
template <class Arith, int C, class Finish>
inline __attribute__((always_inline)) void key_products(const float* a, int words, int keys,
                                                        const float* b, int stride, int steps,
                                                        Prefetcher& ahead, Finish finish) {
  for_even_blocks<C>(keys, [&](int t, auto rows) __attribute__((always_inline)) {
    ahead.fetch();
    F acc[decltype(rows)::value][C];
    multiply_in_chains<Arith, Walk::kAlongRow>(acc, a + t * words, words, b, stride, steps);
    finish(t, acc);
  });
}

// finish(i, vector, acc) takes sums over k of a(i, k) b[k] for rows i, i + 1, ... and channels from
// `vector` vectors on, in blocks acc[R][C].
template <class Arith, Walk kWalk, class Finish>
inline __attribute__((always_inline)) void channel_products(const float* a, ptrdiff_t a_step,
                                                            int rows, int steps, const float* b,
                                                            const Width<Arith>& width,
                                                            Prefetcher& ahead, Finish finish) {
  const int columns = width.columns;
  for_column_blocks(
      ceil_div(width.e, kLanes), [&](int vector, auto vectors) __attribute__((always_inline)) {
        constexpr int C = decltype(vectors)::value;
        for_even_blocks<C>(rows, [&](int i, auto block) __attribute__((always_inline)) {
          ahead.fetch();
          F acc[decltype(block)::value][C];
          multiply_in_chains<Arith, kWalk>(acc, a + (kWalk == Walk::kAlongRow ? i * a_step : i),
                                           a_step, b + vector * kLanes, columns, steps);
          finish(i, vector, acc);
        });
      });
}

// Blocks of products of `vectors` vectors with `rows` rows, at least.
inline int64_t product_blocks(int vectors, int64_t rows) {
  return column_blocks(vectors) *
         ceil_div<int64_t>(rows, vectors == 1 ? kBlockRows<1> : kBlockRows<2>);
}

// Rows of one image and head, to be fetched.
template <class T>
void fetch_ahead(Prefetcher& ahead, const AttentionTokens& tokens, int64_t image, int head,
                 int64_t count, int e) {
  const T* first =
      static_cast<const T*>(tokens.data) + image * tokens.stride[0] + head * tokens.stride[2];
  ahead.add(first, tokens.stride[1] * sizeof(T), count, e * sizeof(T), false, head > 0);
}

// The same of a contiguous (B, count, h, e) that is to be written, unless past the caches.
template <class T>
void fetch_ahead(Prefetcher& ahead, void* data, int64_t image, int head, int64_t count, int heads,
                 int e) {
  if (!data || streams<T>(data, e)) return;
  T* first = static_cast<T*>(data) + (image * count * heads + head) * e;
  ahead.add(first, heads * e * sizeof(T), count, e * sizeof(T), true, head > 0);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
