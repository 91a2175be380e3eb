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

#include "cpu_prefetcher.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr int kTileKeys = 80, kPanelQueries = 96;

// [0, size) in equal parts of at most `largest`; with `step` > 1 in multiples of it.
struct Parts {
  int64_t size, number, step;

  Parts(int64_t size, int64_t largest, int64_t step = 1)
      : size(size), number(std::max<int64_t>(ceil_div(size, largest), 1)), step(step) {}

  int64_t begin(int64_t i) const {
    return std::min(ceil_div(size, step) * i / number * step, size);
  }
  int64_t end(int64_t i) const { return begin(i + 1); }
};

// Tiles start at even keys, so that pairs of keys do not straddle them.
inline Parts key_tiles(const MultiscaleAttentionParams& p) { return {p.M, kTileKeys, 2}; }
inline Parts query_panels(const MultiscaleAttentionParams& p) {
  return {p.N, kPanelQueries, kLanes};
}

// Addresses of the rows of one image and head.
template <class T>
class RowAddresses {
 public:
  explicit RowAddresses(int64_t count) : rows_(count + kLanes) {}

  void add(const AttentionTokens& tokens, int64_t image, int head, int64_t count) {
    const T* first =
        static_cast<const T*>(tokens.data) + image * tokens.stride[0] + head * tokens.stride[2];
    for (int64_t t = 0; t < count; ++t) rows_[count_++] = first + t * tokens.stride[1];
  }
  // Fills the last vector of lanes: they compute what nobody reads.
  void pad() {
    for (int i = 0; i < kLanes; ++i) rows_[count_ + i] = rows_[count_ - 1];
  }
  void clear() { count_ = 0; }

  RowList<T> from(int64_t first) const { return rows_ + first; }

 private:
  AlignedBuffer<const T*> rows_;
  int64_t count_ = 0;
};

// Whether rows of e elements go past the caches: each fills whole cache lines.
template <class T>
bool streams(const void* data, int e) {
  return reinterpret_cast<uintptr_t>(data) % 64 == 0 && e * sizeof(T) % 64 == 0;
}

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
  for_row_blocks<kBlockRows<C>>(keys, [&](int t, auto rows) __attribute__((always_inline)) {
    ahead.fetch();
    F acc[decltype(rows)::value][C] = {};
    multiply<Arith, Walk::kAlongRow>(acc, a + t * words, words, b, stride, steps, PrefetchRows{});
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
        for_row_blocks<kBlockRows<C>>(rows, [&](int i, auto block) __attribute__((always_inline)) {
          ahead.fetch();
          F acc[decltype(block)::value][C] = {};
          multiply<Arith, kWalk>(acc, a + (kWalk == Walk::kAlongRow ? i * a_step : i), a_step,
                                 b + vector * kLanes, columns, steps, PrefetchRows{});
          finish(i, vector, acc);
        });
      });
}

// Blocks of products of `vectors` vectors with `rows` rows, about.
inline int64_t product_blocks(int vectors, int64_t rows) {
  return column_blocks(vectors) * ceil_div<int64_t>(rows, 7);
}

// Rows of one image and head, to be fetched.
template <class T>
void fetch_ahead(Prefetcher& ahead, const AttentionTokens& tokens, int64_t image, int head,
                 int64_t count, int e) {
  const T* first =
      static_cast<const T*>(tokens.data) + image * tokens.stride[0] + head * tokens.stride[2];
  ahead.add(first, tokens.stride[1] * sizeof(T), count, e * sizeof(T), false);
}

// The same of a contiguous (B, count, h, e) that is to be written, unless past the caches.
template <class T>
void fetch_ahead(Prefetcher& ahead, void* data, int64_t image, int head, int64_t count, int heads,
                 int e) {
  if (!data || streams<T>(data, e)) return;
  T* first = static_cast<T*>(data) + (image * count * heads + head) * e;
  ahead.add(first, heads * e * sizeof(T), count, e * sizeof(T), true);
}

// Work on every image and head, each in `parts` pieces where there are too few to share out.
struct Cut {
  int64_t pairs, parts;

  int64_t chunks() const { return pairs * parts; }
};

constexpr int64_t kWantedChunks = 32;

inline Cut forward_cut(const MultiscaleAttentionParams& p) {
  const int64_t pairs = p.B * p.h, panels = query_panels(p).number;
  return {pairs, std::min(panels, ceil_div(kWantedChunks, pairs))};
}

// Pieces of the backward have partial sums of grad_q each: few of them.
inline Cut backward_cut(const MultiscaleAttentionParams& p) {
  const int64_t pairs = p.B * p.h, tiles = key_tiles(p).number;
  return {pairs, std::min({tiles, ceil_div(kWantedChunks, pairs), int64_t{8}})};
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
