// Backward of some tiles of keys of one image and head, over all queries.
#pragma once

#include "../atrous_attention/cpu_packing.h"
#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class Arith, class T>
class BackwardTiles {
 public:
  explicit BackwardTiles(const MultiscaleAttentionParams& p)
      : p_(p),
        key_(p.d),
        value_(p.dv),
        tiles_(key_tiles(p)),
        panels_(query_panels(p)),
        scale_(static_cast<float>(p.scale)),
        scale_log2_(static_cast<float>(p.scale * 1.4426950408889634)),
        keys_(p.M),
        values_(p.M),
        queries_(p.N),
        grads_(p.N),
        outs_(p.N),
        qt_(panels_.number * key_.words * kStride),
        gt_(panels_.number * value_.words * kStride),
        q_inner_(ceil_div<int64_t>(p.N, Arith::kPerWord) * key_.columns),
        g_inner_(ceil_div<int64_t>(p.N, Arith::kPerWord) * value_.columns),
        delta_(panels_.number * kStride),
        lse_(panels_.number * kStride),
        total_(kStride),
        k_(kTileKeys * key_.words),
        v_(kTileKeys * value_.words),
        k_inner_(kPairs ? kTileKeys / 2 * key_.columns : 0),
        s_(kTileKeys * kStride),
        dp_(has_all_keys() ? kTileKeys * kStride : 0),
        pairs_(kPairs ? kTileKeys * kStride / 2 : 0),
        dq_(p.N * key_.columns),
        dk_(kTileKeys * key_.columns),
        dv_(kTileKeys * value_.columns) {}

  // What depends on the queries of an image and head, for the tiles that follow.
  void begin(int64_t image, int head) {
    image_ = image;
    head_ = head;
    const int64_t out_token = int64_t{p_.h} * p_.dv;
    gather(keys_, image, head, &AttentionSegment::k);
    gather(values_, image, head, &AttentionSegment::v);
    for (auto* rows : {&queries_, &grads_, &outs_}) rows->clear();
    queries_.add(p_.q, image, head, p_.N);
    grads_.add(p_.grad_out, image, head, p_.N);
    outs_.add({p_.out, {p_.N * out_token, out_token, p_.dv}}, image, head, p_.N);
    for (auto* rows : {&queries_, &grads_, &outs_}) rows->pad();
    gather_inner<Arith>(q_inner_, key_.columns, queries_.from(0), p_.N, p_.d);
    gather_inner<Arith>(g_inner_, value_.columns, grads_.from(0), p_.N, p_.dv);
    for (int64_t panel = 0; panel < panels_.number; ++panel) gather_panel(panel);
    first_tile_ = true;
  }

  // Fetches what this image and head will need, while those of `begin` are worked on.
  void prefetch(int64_t image, int head) {
    if (panels_.number * tiles_.number > 2) return;
    const int lanes = ceil_div<int>(p_.N, kLanes), d = ceil_div(p_.d, kLanes);
    ahead_.start(2 * product_blocks(lanes, p_.M) + product_blocks(d, p_.M + p_.N) +
                 product_blocks(ceil_div(p_.dv, kLanes), p_.M));
    fetch_ahead<T>(ahead_, p_.q, image, head, p_.N, p_.d);
    fetch_ahead<T>(ahead_, p_.grad_out, image, head, p_.N, p_.dv);
    for (int i = 0; i < p_.segments; ++i) {
      const AttentionSegment& s = p_.segment[i];
      fetch_ahead<T>(ahead_, s.k, image, head, s.M, p_.d);
      fetch_ahead<T>(ahead_, s.v, image, head, s.M, p_.dv);
      fetch_ahead<T>(ahead_, s.grad_k, image, head, s.M, p_.h, p_.d);
      fetch_ahead<T>(ahead_, s.grad_v, image, head, s.M, p_.h, p_.dv);
    }
    fetch_ahead<T>(ahead_, p_.grad_q, image, head, p_.N, p_.h, p_.d);
  }

  ~BackwardTiles() { stream_fence(); }

  void operator()(int64_t tile) {
    first_key_ = tiles_.begin(tile);
    tile_keys_ = static_cast<int>(tiles_.end(tile) - first_key_);
    const auto keys = keys_.from(first_key_), values = values_.from(first_key_);
    gather_rows<Arith>(k_, key_.words, keys, tile_keys_, p_.d);
    gather_rows<Arith>(v_, value_.words, values, tile_keys_, p_.dv);
    if constexpr (kPairs) gather_inner<Arith>(k_inner_, key_.columns, keys, tile_keys_, p_.d);
    for (int64_t panel = 0; panel < panels_.number; ++panel) {
      first_query_ = panels_.begin(panel);
      panel_queries_ = static_cast<int>(panels_.end(panel) - first_query_);
      probabilities(panel);
      add_products<Walk::kAlongRow>(along_queries(), tile_keys_, panel_queries_, inner_grads(),
                                    value_, panel == 0, dv_);
      score_grads(panel);
      if (!wants_score_grads()) continue;
      add_products<Walk::kAlongRow>(along_queries(), tile_keys_, panel_queries_, inner_queries(),
                                    key_, panel == 0, dk_);
      if (p_.grad_q)
        add_products<Walk::kAlongColumn>(s_, panel_queries_, tile_keys_, kPairs ? k_inner_ : k_,
                                         key_, first_tile_, dq_ + first_query_ * key_.columns);
    }
    first_tile_ = false;
    store_tile();
  }

  // dQ of the tiles since `begin`: to grad_q, or with several parts to the workspace.
  void end(int64_t part, int64_t parts) {
    if (!p_.grad_q) return;
    if (parts == 1) {
      T* grad = static_cast<T*>(p_.grad_q) + (image_ * p_.N * p_.h + head_) * p_.d;
      for (int64_t i = 0; i < p_.N; ++i)
        store_scaled(grad + i * p_.h * p_.d, dq_ + i * key_.columns, p_.d, scale_);
      return;
    }
    const int64_t pair = image_ * p_.h + head_;
    float* sums = static_cast<float*>(p_.workspace) + (pair * parts + part) * p_.N * p_.d;
    for (int64_t i = 0; i < p_.N; ++i)
      store_scaled(sums + i * p_.d, dq_ + i * key_.columns, p_.d, scale_);
  }

 private:
  static constexpr bool kPairs = Arith::kPerWord == 2;
  static constexpr int kStride = kPanelQueries;

  bool has_all_keys() const { return tiles_.number == 1; }

  void gather(RowAddresses<T>& rows, int64_t image, int head,
              AttentionTokens AttentionSegment::* tokens) {
    rows.clear();
    for (int i = 0; i < p_.segments; ++i)
      rows.add(p_.segment[i].*tokens, image, head, p_.segment[i].M);
  }

  // Queries, gradients, D and log-sum-exp of a panel, with the queries in the lanes.
  void gather_panel(int64_t panel) {
    const int64_t first = panels_.begin(panel);
    const int count = static_cast<int>(panels_.end(panel) - first);
    const int vectors = ceil_div(count, kLanes);
    const auto grads = grads_.from(first), outs = outs_.from(first);
    gather_columns<Arith>(qt_ + panel * key_.words * kStride, kStride, queries_.from(first),
                          vectors, key_.words, p_.d);
    gather_columns<Arith>(gt_ + panel * value_.words * kStride, kStride, grads, vectors,
                          value_.words, p_.dv);
    const float* lse = static_cast<const float*>(p_.lse) + (image_ * p_.h + head_) * p_.N + first;
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
    for (int c = 0; c < p_.dv; c += kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        partial[i] = fma(FloatArith::load_words(a[i], c, p_.dv),
                         FloatArith::load_words(b[i], c, p_.dv), partial[i]);
    }
    return sums(partial);
  }

  // P of the tile and a panel into s_ (with pairs, into pairs_).
  __attribute__((noinline)) void probabilities(int64_t panel) {
    const float* lse = lse_ + panel * kStride;
    const F scale = broadcast(scale_log2_);
    for_panel(qt_ + panel * key_.words * kStride, k_, key_,
              [&](int t, int lane, auto& acc) __attribute__((always_inline)) {
                constexpr int C = sizeof acc[0] / sizeof acc[0][0];
                for_rows(acc, [&](int r) __attribute__((always_inline)) {
#pragma GCC unroll 4
                  for (int j = 0; j < C; ++j)
                    put(t + r, lane + j * kLanes,
                        exp2(fma(acc[r][j], scale, zero() - load(lse + lane + j * kLanes))));
                });
              });
  }

  // dS = P (dP - D) in place of P; with pairs also as words of two keys, in s_.
  __attribute__((noinline)) void score_grads(int64_t panel) {
    float* delta = delta_ + panel * kStride;
    const auto store_grad = [&](int key, int lane, F weight_grad) __attribute__((always_inline)) {
      const F p = load(s_ + key * kStride + lane);
      put(key, lane, p * (weight_grad - load(delta + lane)));
    };
    if (has_all_keys()) {
      weight_grads(panel, delta);
      const int lanes = round_up_to_lanes(panel_queries_);
      for (int t = 0; t < tile_keys_; ++t)
        for (int i = 0; i < lanes; i += kLanes) store_grad(t, i, load(dp_ + t * kStride + i));
    } else {
      for_panel(gt_ + panel * value_.words * kStride, v_, value_,
                [&](int t, int lane, auto& acc) __attribute__((always_inline)) {
                  constexpr int C = sizeof acc[0] / sizeof acc[0][0];
                  for_rows(acc, [&](int r) __attribute__((always_inline)) {
#pragma GCC unroll 4
                    for (int j = 0; j < C; ++j) store_grad(t + r, lane + j * kLanes, acc[r][j]);
                  });
                });
    }
    if constexpr (kPairs) pair_keys();
  }

  // dP = dO V^T of all keys into dp_, and D = sum of P dP over them: out need not be read. Divided
  // by the sum of P, one but for rounding, so that a lone key has no gradient at all.
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

  inline __attribute__((always_inline)) void put(int key, int lane, F x) {
    store(s_ + key * kStride + lane, x);
    if constexpr (kPairs) store(pair_row(key) + lane, x);
  }
  bf16* pair_row(int key) const { return reinterpret_cast<bf16*>(pairs_ + key * (kStride / 2)); }

  void pair_keys() {
    const int lanes = round_up_to_lanes(panel_queries_);
    for (int t = 0; t < tile_keys_; t += 2)
      for (int i = 0; i < lanes; i += kLanes) {
        const float* s = s_ + t * kStride + i;
        const F high = t + 1 < tile_keys_ ? load(s + kStride) : zero();
        store(s_ + t / 2 * kStride + i, Arith::pack(load(s), high));
      }
  }

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

  bool wants_score_grads() const {
    bool wanted = p_.grad_q;
    for (int i = 0; i < p_.segments; ++i) wanted = wanted || p_.segment[i].grad_k;
    return wanted;
  }

  template <class To>
  static void store_scaled(To* to, const float* from, int e, float factor) {
    const bool streaming = streams<To>(to, e);
    for (int c = 0; c < e; c += kLanes) {
      const F x = load(from + c) * broadcast(factor);
      if (streaming)
        stream_one(to + c, x);
      else
        e - c >= kLanes ? store(to + c, x) : store_first(to + c, x, e - c);
    }
  }

  // dK and dV of the tile to the gradients of the segments that it lies in.
  void store_tile() {
    int64_t begin = 0;
    for (int i = 0; i < p_.segments; begin += p_.segment[i++].M) {
      const AttentionSegment& s = p_.segment[i];
      const int64_t from = std::max(begin, first_key_);
      const int64_t to = std::min(begin + s.M, first_key_ + tile_keys_);
      for (int64_t key = from; key < to; ++key) {
        const int64_t row = (image_ * s.M + key - begin) * p_.h + head_, t = key - first_key_;
        if (s.grad_k)
          store_scaled(static_cast<T*>(s.grad_k) + row * p_.d, dk_ + t * key_.columns, p_.d,
                       scale_);
        if (s.grad_v)
          store_scaled(static_cast<T*>(s.grad_v) + row * p_.dv, dv_ + t * value_.columns, p_.dv,
                       1.f);
      }
    }
  }

  const MultiscaleAttentionParams& p_;
  const Width<Arith> key_, value_;
  const Parts tiles_, panels_;
  const float scale_, scale_log2_;
  RowAddresses<T> keys_, values_, queries_, grads_, outs_;
  AlignedBuffer<float> qt_, gt_;            // Q, dO of each panel: [word][query]
  AlignedBuffer<float> q_inner_, g_inner_;  // Q, dO: [query or pair][channel]
  AlignedBuffer<float> delta_, lse_;        // D, and the log-sum-exp in units of log2
  AlignedBuffer<float> total_;              // of P, of each query of a panel
  AlignedBuffer<float> k_, v_, k_inner_;    // of the tile: [key][word], [pair][channel]
  AlignedBuffer<float> s_, dp_, pairs_;  // P, later dS; dP; with pairs P, dS as bf16: [key][query]
  AlignedBuffer<float> dq_, dk_, dv_;    // sums: of all queries, of the tile's keys

  Prefetcher ahead_;

  int64_t image_ = 0, first_key_ = 0, first_query_ = 0;
  int head_ = 0, tile_keys_ = 0, panel_queries_ = 0;
  bool first_tile_ = true;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
