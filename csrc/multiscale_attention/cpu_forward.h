// Forward of panels of queries of one image and head, over all keys.
#pragma once

#include "../atrous_attention/cpu_packing.h"
#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class Arith, class T>
class ForwardPanels {
 public:
  explicit ForwardPanels(const MultiscaleAttentionParams& p)
      : p_(p),
        key_(p.d),
        value_(p.dv),
        tiles_(key_tiles(p)),
        panels_(query_panels(p)),
        scale_(static_cast<float>(p.scale * 1.4426950408889634)),
        rows_(std::max(p.M, p.N)),
        k_(p.M * key_.words),
        v_(ceil_div<int64_t>(p.M, Arith::kPerWord) * value_.columns),
        q_(key_.words * kPanelQueries),
        s_(kTileKeys * kPanelQueries),
        top_(kPanelQueries),
        total_(kPanelQueries),
        factor_(kPanelQueries),
        out_(kPanelQueries * value_.columns) {}

  // Keys and values of an image and head, for the panels that follow.
  void begin(int64_t image, int head) {
    image_ = image;
    head_ = head;
    rows_.clear();
    for (int i = 0; i < p_.segments; ++i) rows_.add(p_.segment[i].k, image, head, p_.segment[i].M);
    gather_rows<Arith>(k_, key_.words, rows_.from(0), p_.M, p_.d);
    rows_.clear();
    for (int i = 0; i < p_.segments; ++i) rows_.add(p_.segment[i].v, image, head, p_.segment[i].M);
    gather_inner<Arith>(v_, value_.columns, rows_.from(0), p_.M, p_.dv);
    rows_.clear();
    rows_.add(p_.q, image, head, p_.N);
    rows_.pad();
  }

  // Fetches what this image and head will need, while those of `begin` are worked on.
  void prefetch(int64_t image, int head) {
    if (panels_.number * tiles_.number > 2) return;
    ahead_.start(product_blocks(ceil_div<int>(p_.N, kLanes), p_.M) +
                 product_blocks(ceil_div(p_.dv, kLanes), p_.N));
    for (int i = 0; i < p_.segments; ++i) {
      const AttentionSegment& s = p_.segment[i];
      fetch_ahead<T>(ahead_, s.k, image, head, s.M, p_.d);
      fetch_ahead<T>(ahead_, s.v, image, head, s.M, p_.dv);
    }
    fetch_ahead<T>(ahead_, p_.q, image, head, p_.N, p_.d);
    fetch_ahead<T>(ahead_, p_.out, image, head, p_.N, p_.h, p_.dv);
  }

  ~ForwardPanels() { stream_fence(); }

  void operator()(int64_t panel) {
    first_query_ = panels_.begin(panel);
    queries_ = static_cast<int>(panels_.end(panel) - first_query_);
    vectors_ = ceil_div(queries_, kLanes);
    gather_columns<Arith>(q_, kStride, rows_.from(first_query_), vectors_, key_.words, p_.d);
    for (int64_t tile = 0; tile < tiles_.number; ++tile) {
      softmax(tile);
      weigh_values(tile);
    }
    float* lse = static_cast<float*>(p_.lse) + (image_ * p_.h + head_) * p_.N + first_query_;
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
  void scores(int64_t tile, int lane, F (&top)[C]) {
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
    const bool streaming = streams<T>(p_.out, p_.dv);
    const bool first = tile == 0, last = tile + 1 == tiles_.number;
    const float* v = v_ + tiles_.begin(tile) / Arith::kPerWord * value_.columns;
    const int64_t step = int64_t{p_.h} * p_.dv;
    T* const rows =
        static_cast<T*>(p_.out) + ((image_ * p_.N + first_query_) * p_.h + head_) * p_.dv;
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
          store_row(rows + (i + r) * step + vector * kLanes, acc[r], p_.dv - vector * kLanes,
                    streaming);
      }
    };
    channel_products<Arith, Walk::kAlongColumn>(
        s_, kStride, queries_, ceil_div(keys(tile), Arith::kPerWord), v, value_, ahead_, finish);
  }

  static constexpr bool kPairs = Arith::kPerWord == 2;
  const MultiscaleAttentionParams& p_;
  const Width<Arith> key_, value_;
  const Parts tiles_, panels_;
  const float scale_;
  RowAddresses<T> rows_;
  AlignedBuffer<float> k_, v_;                 // of all keys: [key][word], [key or pair][channel]
  AlignedBuffer<float> q_, s_;                 // of a panel: [word][query], [key or pair][query]
  AlignedBuffer<float> top_, total_, factor_;  // of each query, see `exponentials`
  AlignedBuffer<float> out_;                   // [query][channel]
  float inverse_[kPanelQueries];

  Prefetcher ahead_;

  int64_t image_ = 0, first_query_ = 0;
  int head_ = 0, queries_ = 0, vectors_ = 0;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
