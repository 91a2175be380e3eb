// Forward of panels of queries over all keys of one head, wherever their rows lie.
#pragma once

#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Where the rows of one head lie. `streams`: every row of out fills whole cache lines.
template <class T>
struct ForwardRows {
  RowAddresses<T> q, k, v;
  AddressList<T> out;
  Statistic<T>* lse = nullptr;  // of the queries, one behind the other
  bool streams = false;

  explicit ForwardRows(const AttentionSizes& most)
      : q(most.queries), k(most.keys), v(most.keys), out(most.queries) {}

  void clear() { q.clear(), k.clear(), v.clear(), out.clear(); }
};

template <class Arith, class T>
class ForwardPanels {
 public:
  explicit ForwardPanels(const AttentionSizes& most)
      : key_(most.d),
        value_(most.dv),
        scale_(static_cast<float>(most.scale * 1.4426950408889634)),
        k_(most.keys * key_.words),
        v_(ceil_div<int64_t>(most.keys, Arith::kPerWord) * value_.columns),
        q_(key_.words * kPanelQueries),
        s_(kTileKeys * kPanelQueries),
        top_(kPanelQueries),
        total_(kPanelQueries),
        factor_(kPanelQueries),
        out_(kPanelQueries * value_.columns),
        ahead_(most.prefetched) {}

  // Keys and values of a head, for the panels that follow; rows must stay as they are meanwhile.
  void begin(ForwardRows<T>& rows) {
    rows_ = &rows;
    tiles_ = key_tiles(rows.k.count());
    panels_ = query_panels(rows.q.count());
    gather_rows<Arith>(k_, key_.words, rows.k.from(0), rows.k.count(), key_.e);
    gather_inner<Arith>(v_, value_.columns, rows.v.from(0), rows.v.count(), value_.e);
    rows.q.pad();
  }

  // To be given the rows of the head to come: fetched while that of `begin` is worked on.
  Prefetcher& prefetch() {
    ahead_.start(product_blocks(ceil_div<int>(panels_.size, kLanes), tiles_.size) +
                 product_blocks(ceil_div(value_.e, kLanes), panels_.size));
    return ahead_;
  }

  ~ForwardPanels() { stream_fence(); }

  void operator()(int64_t panel) {
    first_query_ = panels_.begin(panel);
    queries_ = static_cast<int>(panels_.end(panel) - first_query_);
    vectors_ = ceil_div(queries_, kLanes);
    gather_columns<Arith>(q_, kStride, rows_->q.from(first_query_), vectors_, key_.words, key_.e);
    for (int64_t tile = 0; tile < tiles_.number; ++tile) {
      softmax(tile);
      weigh_values(tile);
    }
    float* lse = rows_->lse + first_query_;
    for (int i = 0; i < queries_; ++i) lse[i] = top_[i] * kLn2;
  }

 private:
  static constexpr int kStride = kPanelQueries;

  int keys(int64_t tile) const { return static_cast<int>(tiles_.end(tile) - tiles_.begin(tile)); }

  // Exponentials of a tile's scores into s_, relative to the largest score so far.
  __attribute__((noinline)) void softmax(int64_t tile) {
    for_column_blocks(vectors_, [&](int vector, auto width) __attribute__((always_inline)) {
      constexpr int C = decltype(width)::value;
      F top[C];
      scores<C>(tile, vector * kLanes, top);
      exponentials<C>(tile, vector * kLanes, top);
    });
  }

  template <int C>
  inline __attribute__((always_inline)) void scores(int64_t tile, int lane, F (&top)[C]) {
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j)
      top[j] = tile ? load(top_ + lane + j * kLanes) : broadcast(-__builtin_inff());
    const F scale = broadcast(scale_);
    float* s = s_ + lane;
    const auto finish = [&](int t, auto& acc) __attribute__((always_inline)) {
      constexpr int R = sizeof acc / sizeof acc[0];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
          const F x = acc[r][j] * scale;
          store(s + (t + r) * kStride + j * kLanes, x);
          top[j] = max(top[j], x);
        }
      }
    };
    key_products<Arith, C>(k_ + tiles_.begin(tile) * key_.words, key_.words, keys(tile), q_ + lane,
                           kStride, key_.steps, ahead_, finish);
  }

  // In place of the scores; with pairs, a word for two keys. After the last tile top_ holds the
  // log-sum-exp, and factor_ what turns sums into means; before, factor_ rescales earlier sums.
  template <int C>
  void exponentials(int64_t tile, int lane, const F (&top)[C]) {
    F total[C] = {};
    float* s = s_ + lane;
    const int count = keys(tile);
    const auto next = [&](int t, int j) __attribute__((always_inline)) {
      const F x = Arith::exp(load(s + t * kStride + j * kLanes) - top[j]);
      total[j] = total[j] + x;
      return x;
    };
    for (int t = 0; t < count; t += Arith::kPerWord) {
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) {
        F x = next(t, j);
        if constexpr (kPairs) x = Arith::pack(x, t + 1 < count ? next(t + 1, j) : zero());
        store(s + t / Arith::kPerWord * kStride + j * kLanes, x);
      }
    }
    const bool last = tile + 1 == tiles_.number;
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      const int i = lane + j * kLanes;
      F factor = broadcast(1.f);
      if (tile) {
        factor = exp2(load(top_ + i) - top[j]);
        total[j] = fma(load(total_ + i), factor, total[j]);
      }
      if (last) {
        store(inverse_ + i, broadcast(1.f) / total[j]);
        store(top_ + i, top[j] + log2(total[j]));
      } else {
        store(total_ + i, total[j]);
        store(top_ + i, top[j]);
      }
      store(factor_ + i, factor);
    }
  }

  // out = factor out + P V of a tile; the last tile's goes to memory.
  __attribute__((noinline)) void weigh_values(int64_t tile) {
    const bool streaming = rows_->streams;
    const bool first = tile == 0, last = tile + 1 == tiles_.number;
    const float* v = v_ + tiles_.begin(tile) / Arith::kPerWord * value_.columns;
    T* const* rows = rows_->out.from(first_query_);
    const auto finish = [&](int i, int vector, auto& acc) __attribute__((always_inline)) {
      constexpr int R = sizeof acc / sizeof acc[0], C = sizeof acc[0] / sizeof acc[0][0];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        float* sums = out_ + (i + r) * value_.columns + vector * kLanes;
        const F factor = broadcast(factor_[i + r]), inverse = broadcast(inverse_[i + r]);
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
          if (!first) acc[r][j] = fma(load(sums + j * kLanes), factor, acc[r][j]);
          if (last)
            acc[r][j] = acc[r][j] * inverse;
          else
            store(sums + j * kLanes, acc[r][j]);
        }
        if (last)
          store_row(rows[i + r] + vector * kLanes, acc[r], value_.e - vector * kLanes, streaming);
      }
    };
    channel_products<Arith, Walk::kAlongColumn>(
        s_, kStride, queries_, ceil_div(keys(tile), Arith::kPerWord), v, value_, ahead_, finish);
  }

  static constexpr bool kPairs = Arith::kPerWord == 2;
  const Width<Arith> key_, value_;
  const float scale_;
  ForwardRows<T>* rows_ = nullptr;
  Parts tiles_, panels_;                       // of the keys, of the queries
  AlignedBuffer<float> k_, v_;                 // of all keys: [key][word], [key or pair][channel]
  AlignedBuffer<float> q_, s_;                 // of a panel: [word][query], [key or pair][query]
  AlignedBuffer<float> top_, total_, factor_;  // of each query, see `exponentials`
  AlignedBuffer<float> out_;                   // [query][channel]
  float inverse_[kPanelQueries];

  Prefetcher ahead_;

  int64_t first_query_ = 0;
  int queries_ = 0, vectors_ = 0;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
