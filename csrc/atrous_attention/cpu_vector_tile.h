// One window and head in vector code: what forward and backward have in common.
//
// Scores are kept transposed, S[key][query] with the queries in the lanes: maximum, sum and
// log-sum-exp of a query then need no operation across lanes, and the same array serves as the
// broadcast side of P V, dV = P^T dO, dK = dS^T Q (along its rows) and dQ = dS K (down its
// columns). They are kept in units of log2: scale and bias carry a factor of log2(e).
//
// A window of one query more than full vectors, as the usual 7 x 7 = 48 + 1, would waste most of
// a vector: the last query is instead computed with the keys in the lanes and put into its column.
//
// With Bf16Arith a word holds a pair along the inner dimension: channels in Q K^T and dO V^T, keys
// in P V and dS K, queries in P^T dO and dS^T Q. P and dS are rounded to bf16 for these products,
// sums and the softmax stay in float32.
#pragma once

#include "cpu_bias_panels.h"
#include "cpu_packing.h"
#include "cpu_prefetcher.h"
#include "tokens.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// Rows of a result: row i goes to base + offsets[i] * scale.
template <class T>
struct Rows {
  T* base;
  const int64_t* offsets;
  int64_t scale;

  T* operator[](int i) const { return base + offsets[i] * scale; }
};

template <class Arith>
class VectorTile {
 public:
  explicit VectorTile(const AtrousAttentionParams& p)
      : p_(p),
        e_(p.e),
        words_(round_up_to_lanes(ceil_div<int>(p.e, Arith::kPerWord))),
        columns_(words_ * Arith::kPerWord),
        stride_(row_stride(p.P * p.P)),
        max_rows_(round_up_to_lanes(p.P * p.P)),
        scale_(static_cast<float>(p.scale * 1.4426950408889634)),
        bias_(p, kLog2E) {
    for (int i = 0; i < kMaxTokens; ++i) ordinal_[i] = i;
  }
  ~VectorTile() { stream_fence(); }

 protected:
  using Element = typename Arith::Element;
  static constexpr bool kPairs = Arith::kPerWord == 2;

  // Floats between rows of S. Not a multiple of 512 bytes: a walk down a column would then meet
  // few sets of the first-level cache.
  static constexpr int row_stride(int tokens) {
    const int stride = ceil_div(tokens, kLanes) * kLanes;
    return stride % 128 == 0 ? stride + kLanes : stride;
  }

  void begin(const Tokens& tokens, int head) {
    if (rows_ != tokens.window.rows || cols_ != tokens.window.cols) {
      rows_ = tokens.window.rows;
      cols_ = tokens.window.cols;
      count_ = tokens.count;
      has_last_ = rows_ == p_.P && cols_ == p_.P && count_ % kLanes == 1 && count_ > 1;
      vectors_ = has_last_ ? count_ / kLanes : ceil_div(count_, kLanes);
      const PanelShape shape{p_.P, cols_};
      for (int t = 0; t < count_; ++t) run_[t] = shape.run(t / cols_, t % cols_);
      last_bias_ = shape.last_query();
    }
    tokens_ = &tokens;
    bias_panels_ = bias_.find(tokens.window.branch, cols_, head);
  }

  // Whether rows of T can be read as words where they lie. Packing them took 20 to 45 ns.
  template <class T>
  bool words_in_map() const {
    return std::is_same_v<T, Element> && e_ % Arith::kPerWord == 0;
  }
  template <class T>
  WordRows map_rows(const T* base) const {
    return {base, tokens_->qkv, sizeof(T)};
  }
  WordRows packed_rows(const float* rows) const {
    return {rows, ordinal_, words_ * static_cast<int>(sizeof(float))};
  }

  // Products a b^T of C vectors of queries with all keys, a: [key][word], b: [word][query];
  // finish(t, acc) takes the blocks acc[R][C] of keys t, t + 1, ...
  template <int C, class Finish>
  inline __attribute__((always_inline)) void key_products(const WordRows& a, const float* b,
                                                          Finish finish) {
    const int stride = stride_, steps = ceil_div<int>(e_, Arith::kPerWord);
    for_row_blocks<kBlockRows<C>>(count_, [&](int t, auto rows) __attribute__((always_inline)) {
      F acc[decltype(rows)::value][C] = {};
      multiply<Arith>(acc, a, t, b, stride, steps, prefetcher_.next());
      finish(t, acc);
    });
  }

  // The same for the last query alone: out[key] = sum over words of a[key] * row.
  void last_products(const WordRows& a, const float* row, float* out) const {
    const int e = e_;
    const auto vector = [&](int t, int w) {
      return Arith::load_words(reinterpret_cast<const Element*>(a[t]), w, e);
    };
    const int last = count_ - 1;  // behind whole vectors of keys
    for (int t = 0; t < last; t += kLanes) {
      F partial[kLanes] = {};
      for (int w = 0; w < words_; w += kLanes) {
        const F x = load(row + w);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) partial[i] = Arith::dot(partial[i], vector(t + i, w), x);
      }
      store(out + t, sums(partial));
    }
    F partial = zero();
    for (int w = 0; w < words_; w += kLanes)
      partial = Arith::dot(partial, vector(last, w), load(row + w));
    store(out + last, broadcast(sum(partial)));
  }

  // out[i] = factors[i] * sum over k of a(i, k) b[k], rows of e channels.
  template <Walk kWalk, class Step>
  __attribute__((noinline)) void channel_products(const float* a, Step a_step, const float* b,
                                                  const float* factors, Rows<Element> out) {
    const int e = e_, count = count_, columns = columns_;  // stores of vectors might change members
    const int steps = ceil_div(count, Arith::kPerWord);
    const bool streaming = streams(out);
    const auto block = [&](int vector, auto width) __attribute__((always_inline)) {
      constexpr int C = decltype(width)::value;
      for_row_blocks<kBlockRows<C>>(count, [&](int i, auto rows) __attribute__((always_inline)) {
        constexpr int R = decltype(rows)::value;
        F acc[R][C] = {};
        multiply<Arith, kWalk>(acc, a + (kWalk == Walk::kAlongRow ? i * a_step : i), a_step,
                               b + vector * kLanes, columns, steps, prefetcher_.next());
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const F factor = broadcast(factors[i + r]);
#pragma GCC unroll 4
          for (int j = 0; j < C; ++j) acc[r][j] = acc[r][j] * factor;
          store_row(out[i + r] + vector * kLanes, acc[r], e - vector * kLanes, streaming);
        }
      });
    };
    for_column_blocks(ceil_div(e, kLanes), block);
  }

  // Rows go past the caches where each fills whole cache lines.
  template <class T>
  bool streams(const Rows<T>& rows) const {
    return !left_out(Stage::memory) && reinterpret_cast<uintptr_t>(rows.base) % 64 == 0 &&
           e_ * sizeof(T) % 64 == 0;
  }

  // Blocks of the products with all keys, and of those that give rows of channels; at least.
  int key_blocks() const { return column_blocks(vectors_) * ceil_div(count_, kBlockRows<2>); }
  int channel_blocks() const {
    const int vectors = ceil_div(e_, kLanes);
    return column_blocks(vectors) * ceil_div(count_, vectors == 1 ? kBlockRows<1> : kBlockRows<2>);
  }

  // Puts the last query's values into its column of S; with pairs, after rounding, into words.
  void put_column(float* column, float* row) const {
    if constexpr (kPairs)
      for (int t = 0; t < count_; t += kLanes)
        store(reinterpret_cast<bf16*>(row) + t, load(row + t));
    const int rows = ceil_div(count_, Arith::kPerWord);
    for (int t = 0; t < rows; ++t) column[t * stride_] = row[t];
  }

  const AtrousAttentionParams& p_;
  const int e_, words_, columns_, stride_, max_rows_;
  const float scale_;
  BiasPanels bias_;
  Prefetcher prefetcher_;

  const Tokens* tokens_ = nullptr;
  const float* bias_panels_ = nullptr;
  int rows_ = 0, cols_ = 0, count_ = 0, vectors_ = 0;
  bool has_last_ = false;
  int run_[kMaxTokens], last_bias_ = 0;  // where the bias of a key starts in the panels

 private:
  int64_t ordinal_[kMaxTokens];  // 0, 1, ...: the offsets of packed rows
};

// Results of element type T where the arithmetic gives another: rows are computed into a buffer
// first.
template <class Arith, class T>
class RowStage {
 public:
  RowStage(int rows, int columns) : rows_(kStaged ? rows * columns : 0), columns_(columns) {
    for (int i = 0; i < kMaxTokens; ++i) index_[i] = i;
  }

  template <class Compute>
  void operator()(Rows<T> out, int count, int e, Compute compute) {
    if constexpr (!kStaged) {
      compute(out);
    } else {
      compute(Rows<typename Arith::Element>{rows_, index_, columns_});
      for (int i = 0; i < count; ++i)
        for (int c = 0; c < e; c += kLanes) {
          const F v = load(rows_ + i * columns_ + c);
          e - c >= kLanes ? store(out[i] + c, v) : store_first(out[i] + c, v, e - c);
        }
    }
  }

 private:
  static constexpr bool kStaged = !std::is_same_v<T, typename Arith::Element>;
  AlignedBuffer<float> rows_;
  int columns_;
  int64_t index_[kMaxTokens];
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
