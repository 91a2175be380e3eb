// Backward of tiles of keys over all queries of one head, wherever their rows lie. The sums stay
// here, unscaled, for the caller to store.
#pragma once

#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Where the rows of one head lie; `out` is read only where there is more than one tile of keys.
template <class T>
struct BackwardRows {
  RowAddresses<T> q, k, v, grad_out, out;
  const Statistic<T>* lse = nullptr;  // of the queries, one behind the other

  explicit BackwardRows(const AttentionSizes& most)
      : q(most.queries), k(most.keys), v(most.keys), grad_out(most.queries), out(most.queries) {}

  void clear() { q.clear(), k.clear(), v.clear(), grad_out.clear(), out.clear(); }
};

// Which sums are wanted beside that of the values.
struct BackwardNeeds {
  bool queries, keys;
};

template <class Arith, class T>
class BackwardTiles {
 public:
  BackwardTiles(const AttentionSizes& most, BackwardNeeds needs)
      : needs_(needs),
        key_(most.d),
        value_(most.dv),
        scale_log2_(static_cast<float>(most.scale * 1.4426950408889634)),
        qt_(query_panels(most.queries).number * key_.words * kStride),
        gt_(query_panels(most.queries).number * value_.words * kStride),
        q_inner_(ceil_div<int64_t>(most.queries, Arith::kPerWord) * key_.columns),
        g_inner_(ceil_div<int64_t>(most.queries, Arith::kPerWord) * value_.columns),
        delta_(query_panels(most.queries).number * kStride),
        lse_(query_panels(most.queries).number * kStride),
        total_(kStride),
        k_(kTileKeys * key_.words),
        v_(kTileKeys * value_.words),
        k_inner_(kPairs ? kTileKeys / 2 * key_.columns : 0),
        s_(kTileKeys * kStride),
        dp_(kTileKeys * kStride),
        pairs_(kPairs ? kTileKeys * kStride / 2 : 0),
        dq_(most.queries * key_.columns),
        dk_(kTileKeys * key_.columns),
        dv_(kTileKeys * value_.columns),
        ahead_(most.prefetched) {}

  // What depends on the queries of a head, for the tiles that follow; rows must stay meanwhile.
  void begin(BackwardRows<T>& rows) {
    rows_ = &rows;
    tiles_ = key_tiles(rows.k.count());
    panels_ = query_panels(rows.q.count());
    rows.q.pad();
    rows.grad_out.pad();
    if (!has_all_keys()) rows.out.pad();
    gather_inner<Arith>(q_inner_, key_.columns, rows.q.from(0), panels_.size, key_.e);
    gather_inner<Arith>(g_inner_, value_.columns, rows.grad_out.from(0), panels_.size, value_.e);
    for (int64_t panel = 0; panel < panels_.number; ++panel) gather_panel(panel);
    first_tile_ = true;
  }

  // To be given the rows of the head to come: fetched while that of `begin` is worked on.
  Prefetcher& prefetch() {
    const int lanes = ceil_div<int>(panels_.size, kLanes), d = ceil_div(key_.e, kLanes);
    ahead_.start(2 * product_blocks(lanes, tiles_.size) +
                 product_blocks(d, tiles_.size + panels_.size) +
                 product_blocks(ceil_div(value_.e, kLanes), tiles_.size));
    return ahead_;
  }

  ~BackwardTiles() { stream_fence(); }

  void operator()(int64_t tile) {
    first_key_ = tiles_.begin(tile);
    tile_keys_ = static_cast<int>(tiles_.end(tile) - first_key_);
    const auto keys = rows_->k.from(first_key_), values = rows_->v.from(first_key_);
    gather_rows<Arith>(k_, key_.words, keys, tile_keys_, key_.e);
    gather_rows<Arith>(v_, value_.words, values, tile_keys_, value_.e);
    if constexpr (kPairs) gather_inner<Arith>(k_inner_, key_.columns, keys, tile_keys_, key_.e);
    for (int64_t panel = 0; panel < panels_.number; ++panel) {
      first_query_ = panels_.begin(panel);
      panel_queries_ = static_cast<int>(panels_.end(panel) - first_query_);
      probabilities(panel);
      if (has_all_keys()) normalise();
      add_products<Walk::kAlongRow>(along_queries(), tile_keys_, panel_queries_, inner_grads(),
                                    value_, panel == 0, dv_);
      score_grads(panel);
      if (!wants_score_grads()) continue;
      add_products<Walk::kAlongRow>(along_queries(), tile_keys_, panel_queries_, inner_queries(),
                                    key_, panel == 0, dk_);
      if (needs_.queries)
        add_products<Walk::kAlongColumn>(s_, panel_queries_, tile_keys_, kPairs ? k_inner_ : k_,
                                         key_, first_tile_, dq_ + first_query_ * key_.columns);
    }
    first_tile_ = false;
  }

  int64_t tiles() const { return tiles_.number; }

  // Sums, to be multiplied by scale: over the tiles since `begin`, for any query; of the last
  // tile, for key `first_key() + t`, t < `tile_keys()`.
  const float* query_sum(int64_t i) const { return dq_ + i * key_.columns; }
  const float* key_sum(int t) const { return dk_ + t * key_.columns; }
  // The same without scale.
  const float* value_sum(int t) const { return dv_ + t * value_.columns; }
  int64_t first_key() const { return first_key_; }
  int tile_keys() const { return tile_keys_; }

 private:
  static constexpr bool kPairs = Arith::kPerWord == 2;
  static constexpr int kStride = kPanelQueries;

  bool has_all_keys() const { return tiles_.number == 1; }

  // Queries, gradients, D and log-sum-exp of a panel, with the queries in the lanes.
  void gather_panel(int64_t panel) {
    const int64_t first = panels_.begin(panel);
    const int count = static_cast<int>(panels_.end(panel) - first);
    const int vectors = ceil_div(count, kLanes);
    const auto grads = rows_->grad_out.from(first), outs = rows_->out.from(first);
    gather_columns<Arith>(qt_ + panel * key_.words * kStride, kStride, rows_->q.from(first),
                          vectors, key_.words, key_.e);
    gather_columns<Arith>(gt_ + panel * value_.words * kStride, kStride, grads, vectors,
                          value_.words, value_.e);
    const float* lse = rows_->lse + first;
    for (int i = 0; i < vectors * kLanes; i += kLanes) {
      if (!has_all_keys()) store(delta_ + panel * kStride + i, products(outs + i, grads + i));
      const int valid = std::min(count - i, kLanes);
      // Behind the last query its copy: an infinite P there would spoil the last pair.
      const F all = select_first(load_first(lse + i, valid), broadcast(lse[count - 1]), valid);
      store(lse_ + panel * kStride + i, all * broadcast(kLog2E));
    }
  }

  // Lane i: the inner product of rows i.
  F products(RowList<T> a, RowList<T> b) const {
    F partial[kLanes] = {};
    const int e = value_.e;
    for (int w = 0; w < value_.steps; w += kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        partial[i] =
            Arith::dot(partial[i], Arith::load_words(a[i], w, e), Arith::load_words(b[i], w, e));
    }
    return sums(partial);
  }

  // P of the tile and a panel into s_ (with pairs, into pairs_ too).
  __attribute__((noinline)) void probabilities(int64_t panel) {
    const float* lse = lse_ + panel * kStride;
    const F scale = broadcast(scale_log2_);
    for_panel(qt_ + panel * key_.words * kStride, k_, key_,
              [&](int t, int lane, auto& acc) __attribute__((always_inline)) {
                constexpr int C = sizeof acc[0] / sizeof acc[0][0];
                F least[C];
#pragma GCC unroll 4
                for (int j = 0; j < C; ++j) least[j] = zero() - load(lse + lane + j * kLanes);
                for_rows(acc, [&](int r) __attribute__((always_inline)) {
#pragma GCC unroll 4
                  for (int j = 0; j < C; ++j) {
                    acc[r][j] = Arith::exp(fma(acc[r][j], scale, least[j]));
                    store(s_ + (t + r) * kStride + lane + j * kLanes, acc[r][j]);
                  }
                  if constexpr (kPairs)
                    store_row(pair_row(t + r) + lane, acc[r], C * kLanes, false);
                });
              });
  }

  // Divides P of all keys by its sum, one but for the rounding of the log-sum-exp: where scores are
  // large, that is more than P itself may be wrong.
  __attribute__((noinline)) void normalise() {
    for (int i = 0; i < panel_queries_; i += kLanes) {
      F total = zero();
      for (int t = 0; t < tile_keys_; ++t) total = total + load(s_ + t * kStride + i);
      const F factor = broadcast(1.f) / total;
      for (int t = 0; t < tile_keys_; ++t) {
        const F p = load(s_ + t * kStride + i) * factor;
        store(s_ + t * kStride + i, p);
        if constexpr (kPairs) store(pair_row(t) + i, p);
      }
    }
  }

  // dS = P (dP - D) in place of P; with pairs as words of two queries in pairs_, of two keys in s_.
  __attribute__((noinline)) void score_grads(int64_t panel) {
    float* delta = delta_ + panel * kStride;
    if (has_all_keys())
      weight_grads(panel, delta);
    else
      for_panel(gt_ + panel * value_.words * kStride, v_, value_,
                [&](int t, int lane, auto& acc) __attribute__((always_inline)) {
                  constexpr int C = sizeof acc[0] / sizeof acc[0][0];
                  for_rows(acc, [&](int r) __attribute__((always_inline)) {
#pragma GCC unroll 4
                    for (int j = 0; j < C; ++j)
                      store(dp_ + (t + r) * kStride + lane + j * kLanes, acc[r][j]);
                  });
                });
    const int lanes = round_up_to_lanes(panel_queries_), keys = tile_keys_;
    float *s = s_, *dp = dp_;
    const auto grad = [=](int t, int lane) __attribute__((always_inline)) {
      const int i = t * kStride + lane;
      return load(s + i) * (load(dp + i) - load(delta + lane));
    };
    int t = 0;
    if constexpr (kPairs) {
      bf16* rows = pair_row(0);
      for (; t + 1 < keys; t += 2)
        for (int i = 0; i < lanes; i += kLanes) {
          bf16* row = rows + t * kStride + i;
          store(s + t / 2 * kStride + i,
                Arith::store_and_pack(row, grad(t, i), row + kStride, grad(t + 1, i)));
        }
      for (int i = 0; t < keys && i < lanes; i += kLanes) {
        const F last = grad(t, i);
        store(rows + t * kStride + i, last);
        store(s + t / 2 * kStride + i, Arith::pack(last, zero()));
      }
    } else {
      for (; t < keys; ++t)
        for (int i = 0; i < lanes; i += kLanes) store(s + t * kStride + i, grad(t, i));
    }
  }

  // dP = dO V^T of all keys into dp_, and D = sum of P dP over them: out need not be read. Divided
  // by the sum of P, so that a lone key has no gradient at all.
  void weight_grads(int64_t panel, float* delta) {
    for (int i = 0; i < kStride; i += kLanes) {
      store(delta + i, zero());
      store(total_ + i, zero());
    }
    for_panel(gt_ + panel * value_.words * kStride, v_, value_,
              [&](int t, int lane, auto& acc) __attribute__((always_inline)) {
                constexpr int C = sizeof acc[0] / sizeof acc[0][0];
#pragma GCC unroll 4
                for (int j = 0; j < C; ++j) {
                  const int i = lane + j * kLanes;
                  F sum = load(delta + i), total = load(total_ + i);
                  for_rows(acc, [&](int r) __attribute__((always_inline)) {
                    const F p = load(s_ + (t + r) * kStride + i);
                    store(dp_ + (t + r) * kStride + i, acc[r][j]);
                    sum = fma(p, acc[r][j], sum);
                    total = total + p;
                  });
                  store(delta + i, sum);
                  store(total_ + i, total);
                }
              });
    for (int i = 0; i < panel_queries_; i += kLanes)
      store(delta + i, load(delta + i) / load(total_ + i));
  }

  template <class Acc, class Body>
  static inline __attribute__((always_inline)) void for_rows(Acc& acc, Body body) {
#pragma GCC unroll 16
    for (size_t r = 0; r < sizeof acc / sizeof acc[0]; ++r) body(static_cast<int>(r));
  }

  // finish(key, lane, acc) for products of all keys of the tile with all queries of the panel.
  template <class Finish>
  inline __attribute__((always_inline)) void for_panel(const float* columns, const float* rows,
                                                       const Width<Arith>& width, Finish finish) {
    const int keys = tile_keys_, words = width.words, steps = width.steps;
    for_column_blocks(ceil_div(panel_queries_, kLanes),
                      [&](int vector, auto vectors) __attribute__((always_inline)) {
                        constexpr int C = decltype(vectors)::value;
                        const int lane = vector * kLanes;
                        key_products<Arith, C>(
                            rows, words, keys, columns + lane, kStride, steps, ahead_,
                            [&](int t, auto& acc)
                                __attribute__((always_inline)) { finish(t, lane, acc); });
                      });
  }

  bf16* pair_row(int key) const { return reinterpret_cast<bf16*>(pairs_ + key * (kStride / 2)); }

  // sums (+)= a b, rows of width.columns floats.
  template <Walk kWalk>
  __attribute__((noinline)) void add_products(const float* a, int rows, int inner, const float* b,
                                              const Width<Arith>& width, bool first, float* sums) {
    const ptrdiff_t step = kWalk == Walk::kAlongRow && kPairs ? kStride / 2 : kStride;
    channel_products<Arith, kWalk>(
        a, step, rows, ceil_div(inner, Arith::kPerWord), b, width, ahead_,
        [&](int i, int vector, auto& acc) __attribute__((always_inline)) {
          constexpr int C = sizeof acc[0] / sizeof acc[0][0];
          for_rows(acc, [&](int r) __attribute__((always_inline)) {
            float* row = sums + (i + r) * width.columns + vector * kLanes;
#pragma GCC unroll 4
            for (int j = 0; j < C; ++j)
              store(row + j * kLanes, first ? acc[r][j] : load(row + j * kLanes) + acc[r][j]);
          });
        });
  }

  const float* along_queries() const { return kPairs ? pairs_ : s_; }
  // Panels start at whole vectors, hence at whole pairs.
  const float* inner_queries() const {
    return q_inner_ + first_query_ / Arith::kPerWord * key_.columns;
  }
  const float* inner_grads() const {
    return g_inner_ + first_query_ / Arith::kPerWord * value_.columns;
  }

  bool wants_score_grads() const { return needs_.queries || needs_.keys; }

  const BackwardNeeds needs_;
  const Width<Arith> key_, value_;
  const float scale_log2_;
  BackwardRows<T>* rows_ = nullptr;
  Parts tiles_, panels_;                    // of the keys, of the queries
  AlignedBuffer<float> qt_, gt_;            // Q, dO of each panel: [word][query]
  AlignedBuffer<float> q_inner_, g_inner_;  // Q, dO: [query or pair][channel]
  AlignedBuffer<float> delta_, lse_;        // D, and the log-sum-exp in units of log2
  AlignedBuffer<float> total_;              // of P, of each query of a panel
  AlignedBuffer<float> k_, v_, k_inner_;    // of the tile: [key][word], [pair][channel]
  AlignedBuffer<float> s_, dp_, pairs_;  // P, later dS; dP; with pairs P, dS as bf16: [key][query]
  AlignedBuffer<float> dq_, dk_, dv_;    // sums: of all queries, of the tile's keys

  Prefetcher ahead_;

  int64_t first_key_ = 0, first_query_ = 0;
  int tile_keys_ = 0, panel_queries_ = 0;
  bool first_tile_ = true;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
