// Backward of one window and head, from qkv, bias and the log-sum-exp L:
//
//   P = exp(S - L)    dP = dO V^T    dS = P (dP - D)
//   with D = <dO, out> of each query, computed as the mean of dP under P, rounded where P is: out
//   is not read, and an error of L, which large scores make, cancels
//   dV = P^T dO       dK = scale dS^T Q    dQ = scale dS K    dbias = sums of dS
#pragma once

#include "cpu_vector_tile.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Which lanes of dS are summed for the gradient of the bias.
enum class BiasShare { none, first_lanes, all_lanes };

// From Q, K, V, dO and L to P, dS and the gradient of the bias.
template <class Arith>
class ScoreGrads : public VectorTile<Arith> {
  using Base = VectorTile<Arith>;
  using Element = typename Arith::Element;

 protected:
  using Base::kPairs, Base::p_, Base::words_, Base::stride_, Base::scale_, Base::bias_panels_,
      Base::count_, Base::vectors_, Base::has_last_, Base::run_, Base::last_bias_, Base::max_rows_;

  explicit ScoreGrads(const AtrousAttentionParams& p)
      : Base(p),
        grad_bias_(p),
        qt_(words_ * stride_),
        gt_(words_ * stride_),
        k_(max_rows_ * words_),
        v_(max_rows_ * words_),
        last_q_(words_),
        last_g_(words_),
        lse_(max_rows_),
        s_(max_rows_ * stride_),
        dp_(max_rows_ * stride_),
        key_pairs_(kPairs ? max_rows_ / 2 * stride_ : 0),
        last_p_(max_rows_),
        last_ds_(max_rows_) {}

  // P into s_.
  __attribute__((noinline)) void probabilities(const WordRows& keys) {
    for_column_blocks(vectors_, [&](int vector, auto width) __attribute__((always_inline)) {
      probability_block<decltype(width)::value>(keys, vector * kLanes);
    });
    if (!has_last_) return;
    const F lse = broadcast(lse_[count_ - 1]);
    this->last_products(keys, last_q_, last_p_);
    for (int t = 0; t < count_; t += kLanes) {
      const F s = fma(load(last_p_ + t), broadcast(scale_), load(bias_panels_ + last_bias_ + t));
      store(last_p_ + t, select_first(Arith::exp(s - lse), zero(), count_ - t));
    }
    put_last(last_p_);
  }

  // dS in place of P, with pairs also as words of two keys; and its share of the gradient of the
  // bias.
  __attribute__((noinline)) void score_grads(const WordRows& values) {
    for_column_blocks(vectors_, [&](int vector, auto width) __attribute__((always_inline)) {
      constexpr int C = decltype(width)::value;
      F delta[C];
      weight_grad_block(values, vector * kLanes, delta);
      score_grad_block(vector * kLanes, delta);
    });
    if (has_last_) score_grads_of_last(values);
  }

  // P or dS along its rows, as words (with pairs of two queries); dS down its columns (two keys).
  float* row_words() const { return reinterpret_cast<float*>(static_cast<Element*>(s_)); }
  float* column_words() const { return kPairs ? static_cast<float*>(key_pairs_) : row_words(); }

  BiasGradPanels grad_bias_;
  float* bias_grad_panels_ = nullptr;
  AlignedBuffer<float> qt_, gt_;          // Q, dO: [word][query]
  AlignedBuffer<float> k_, v_;            // [key][word]
  AlignedBuffer<float> last_q_, last_g_;  // words of the last query
  AlignedBuffer<float> lse_;              // L in units of log2
  AlignedBuffer<Element> s_;              // P, later dS: [key][query]
  AlignedBuffer<float> dp_;               // dP: [key][query]
  AlignedBuffer<float> key_pairs_;        // with pairs: dS, [pair of keys][query]

 private:
  // Stores of vectors might change members as far as the compiler knows: hence the local copies.

  template <int C>
  void probability_block(const WordRows& keys, int lane) {
    F lse[C];
    for (int j = 0; j < C; ++j) lse[j] = load(lse_ + lane + j * kLanes);
    const F scale = broadcast(scale_);
    const float* bias = bias_panels_ + lane;
    Element* s = s_ + lane;
    const int* run = run_;
    const int stride = stride_;
    const auto finish = [&](int t, auto& acc) __attribute__((always_inline)) {
      constexpr int R = sizeof acc / sizeof acc[0];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
          const F x = fma(acc[r][j], scale, load(bias + run[t + r] + j * kLanes));
          store(s + (t + r) * stride + j * kLanes, Arith::exp(x - lse[j]));
        }
      }
    };
    this->template key_products<C>(keys, qt_ + lane, finish);
  }

  // dP = dO V^T of C vectors of queries, and D: the sum of P dP over that of P, which is about one.
  template <int C>
  void weight_grad_block(const WordRows& values, int lane, F (&delta)[C]) {
    F product[C] = {}, total[C] = {};
    const Element* s = s_ + lane;
    float* dp = dp_ + lane;
    const int stride = stride_;
    const auto finish = [&](int t, auto& acc) __attribute__((always_inline)) {
      constexpr int R = sizeof acc / sizeof acc[0];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
          const F p = load(s + (t + r) * stride + j * kLanes);
          store(dp + (t + r) * stride + j * kLanes, acc[r][j]);
          product[j] = fma(p, acc[r][j], product[j]);
          total[j] = total[j] + p;
        }
      }
    };
    this->template key_products<C>(values, gt_ + lane, finish);
    for (int j = 0; j < C; ++j) delta[j] = product[j] / total[j];
  }

  template <int C>
  void score_grad_block(int lane, const F (&delta)[C]) {
    const int lanes = count_ - lane;  // of queries
    if (!p_.grad_bias)
      score_grad_rows<C, BiasShare::none>(lane, delta);
    else if (lanes < C * kLanes)
      score_grad_rows<C, BiasShare::first_lanes>(lane, delta);
    else
      score_grad_rows<C, BiasShare::all_lanes>(lane, delta);
  }

  template <int C, BiasShare kShare>
  void score_grad_rows(int lane, const F (&delta)[C]) {
    const int stride = stride_, count = count_, lanes = count_ - lane;
    Element* s = s_ + lane;
    const float* dp = dp_ + lane;
    float* pairs = key_pairs_ + lane;
    float* sums = bias_grad_panels_ + lane;
    const int* run = run_;
    const auto grad = [&](int t, int j) __attribute__((always_inline)) {
      const int i = t * stride + j * kLanes;
      const F ds = load(s + i) * (load(dp + i) - delta[j]);
      if constexpr (kShare == BiasShare::none) return ds;
      float* sum = sums + run[t] + j * kLanes;
      store(sum, load(sum) + (kShare == BiasShare::first_lanes
                                  ? select_first(ds, zero(), lanes - j * kLanes)
                                  : ds));
      return ds;
    };
    int t = 0;
    if constexpr (kPairs) {
      for (; t + 1 < count; t += 2) {
        Element *low = s + t * stride, *high = low + stride;
#pragma GCC unroll 4
        for (int j = 0; j < C * kLanes; j += kLanes)
          store(pairs + t / 2 * stride + j,
                Arith::store_and_pack(low + j, grad(t, j / kLanes), high + j,
                                      grad(t + 1, j / kLanes)));
      }
    }
    for (; t < count; ++t) {
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) {
        const F ds = grad(t, j);
        store(s + t * stride + j * kLanes, ds);
        if constexpr (kPairs) store(pairs + t / 2 * stride + j * kLanes, Arith::pack(ds, zero()));
      }
    }
  }

  void score_grads_of_last(const WordRows& values) {
    this->last_products(values, last_g_, last_ds_);
    F delta = zero(), total = zero();
    for (int t = 0; t < count_; t += kLanes) {  // P is zero behind the last key
      delta = fma(load(last_p_ + t), select_first(load(last_ds_ + t), zero(), count_ - t), delta);
      total = total + load(last_p_ + t);
    }
    delta = broadcast(sum(delta)) / broadcast(sum(total));
    for (int t = 0; t < count_; t += kLanes) {
      const F ds = load(last_p_ + t) * (load(last_ds_ + t) - delta);
      store(last_ds_ + t, select_first(ds, zero(), count_ - t));
      if (!p_.grad_bias) continue;
      float* sums = bias_grad_panels_ + last_bias_ + t;
      store(sums, load(sums) + load(last_ds_ + t));
    }
    put_last(last_ds_);
    if constexpr (kPairs) this->put_column(key_pairs_ + count_ - 1, last_ds_);
  }

  // The last query's values into its column of s_, with pairs alone in its words.
  void put_last(float* values) const {
    const int last = count_ - 1, rows = count_, step = stride_ / Arith::kPerWord;
    if constexpr (kPairs) {
      float* column = row_words() + last / 2;
      float words[kMaxTokens];
      for (int t = 0; t < rows; t += kLanes)
        store(words + t, Arith::pack(load(values + t), zero()));
      for (int t = 0; t < rows; ++t) column[t * step] = words[t];
    } else {
      this->put_column(s_ + last, values);
    }
  }

  AlignedBuffer<float> last_p_, last_ds_;
};

template <class Arith, class T>
class BackwardTile : ScoreGrads<Arith> {
  using Base = ScoreGrads<Arith>;
  using Base::kPairs, Base::p_, Base::e_, Base::words_, Base::columns_, Base::stride_,
      Base::prefetcher_, Base::tokens_, Base::count_, Base::vectors_, Base::max_rows_;

 public:
  explicit BackwardTile(const AtrousAttentionParams& p)
      : Base(p),
        q_inner_(max_rows_ * columns_),
        k_inner_(kPairs ? max_rows_ * columns_ : 0),
        g_inner_(max_rows_ * columns_),
        scales_(max_rows_),
        ones_(max_rows_),
        stage_(max_rows_, columns_) {
    for (int i = 0; i < max_rows_; ++i) {
      scales_[i] = static_cast<float>(p.scale);
      ones_[i] = 1;
    }
  }

  void begin_chunk() { this->grad_bias_.begin_chunk(); }
  void end_chunk(int64_t chunk) {
    if (p_.grad_bias) this->grad_bias_.end_chunk(chunk);
  }

  void operator()(const Tokens& tokens, int head, const Tokens& next) {
    this->begin(tokens, head);
    if (p_.grad_bias) this->bias_grad_panels_ = this->grad_bias_.find(tokens.window.cols, head);
    // The very next rows: a whole window of them, for all heads, would not stay in the cache.
    head + 1 < p_.h ? start_prefetch(tokens, head + 1) : start_prefetch(next, 0);
    pack(head);
    load_lse(head);
    this->probabilities(k_rows(head));
    if (p_.grad_qkv) store_grad<Walk::kAlongRow>(head, 2, this->row_words(), g_inner_, ones_);
    this->score_grads(v_rows(head));
    if (!p_.grad_qkv) return;
    store_grad<Walk::kAlongRow>(head, 1, this->row_words(), q_inner_, scales_);
    store_grad<Walk::kAlongColumn>(head, 0, this->column_words(), kPairs ? k_inner_ : this->k_,
                                   scales_);
  }

 private:
  const T* qkv(int head, int part) const {
    return static_cast<const T*>(p_.qkv) + head * p_.qkv_stride[5] + part * p_.qkv_stride[4];
  }
  const T* grad_out(int head) const {
    return static_cast<const T*>(p_.grad_out) + head * p_.grad_out_stride[4];
  }

  Rows<T> grad_rows(const Tokens& tokens, int head, int part) const {
    T* base = static_cast<T*>(p_.grad_qkv) + int64_t{part * p_.h + head} * e_;
    return {base, tokens.row, 3 * int64_t{e_}};
  }

  void start_prefetch(const Tokens& next, int head) {
    prefetcher_.start(next.count, 2 * this->key_blocks() + 3 * this->channel_blocks());
    const int bytes = e_ * sizeof(T);
    prefetcher_.add(qkv(head, 0), next.qkv, sizeof(T), bytes, p_.qkv_stride[4] * sizeof(T));
    prefetcher_.add(grad_out(head), next.grad_out, sizeof(T), bytes);
    if (head == 0) prefetcher_.add(p_.lse, next.row, sizeof(float), p_.h * sizeof(float));
    const Rows<T> grad = grad_rows(next, head, 0);
    if (p_.grad_qkv && !this->streams(grad))
      prefetcher_.add(grad.base, grad.offsets, grad.scale * sizeof(T), bytes,
                      p_.h * int64_t{bytes});
  }

  void pack(int head) {
    const int64_t *offsets = tokens_->qkv, *grad = tokens_->grad_out;
    const T *q = qkv(head, 0), *k = qkv(head, 1), *g = grad_out(head);
    if (packs_keys()) pack_rows<Arith>(this->k_, words_, k, offsets, count_, e_);
    if (!this->template words_in_map<T>())
      pack_rows<Arith>(this->v_, words_, qkv(head, 2), offsets, count_, e_);
    pack_columns<Arith>(this->qt_, stride_, q, offsets, vectors_, words_, e_);
    pack_columns<Arith>(this->gt_, stride_, g, grad, vectors_, words_, e_);
    if constexpr (kPairs) {
      pack_row_pairs<Arith>(q_inner_, columns_, q, offsets, count_, e_);
      pack_row_pairs<Arith>(k_inner_, columns_, k, offsets, count_, e_);
      pack_row_pairs<Arith>(g_inner_, columns_, g, grad, count_, e_);
    } else {
      pack_rows<Arith>(q_inner_, words_, q, offsets, count_, e_);
      pack_rows<Arith>(g_inner_, words_, g, grad, count_, e_);
    }
    if (!this->has_last_) return;
    pack_rows<Arith>(this->last_q_, words_, q, offsets + count_ - 1, 1, e_);
    pack_rows<Arith>(this->last_g_, words_, g, grad + count_ - 1, 1, e_);
  }

  // L of every query.
  void load_lse(int head) {
    const float* lse = static_cast<const float*>(p_.lse) + head;
    float* dst = this->lse_;
    const int64_t* row = tokens_->row;
    for (int s = 0; s < vectors_ * kLanes + this->has_last_; ++s) dst[s] = lse[row[s]] * kLog2E;
  }

  // With pairs K is not packed as words of a row, unless the map does not have them.
  bool packs_keys() const { return !kPairs || !this->template words_in_map<T>(); }
  WordRows k_rows(int head) const {
    return packs_keys() ? this->packed_rows(this->k_) : this->map_rows(qkv(head, 1));
  }
  WordRows v_rows(int head) const {
    return this->template words_in_map<T>() ? this->map_rows(qkv(head, 2))
                                            : this->packed_rows(this->v_);
  }

  // One part (0 for dQ, 1 dK, 2 dV) of the gradient, from P or dS and the tokens on the other side.
  template <Walk kWalk>
  void store_grad(int head, int part, const float* s, const float* other, const float* factors) {
    const auto compute = [&](auto step) {
      stage_(grad_rows(*tokens_, head, part), count_, e_, [&](auto grad) {
        this->template channel_products<kWalk>(s, step, other, factors, grad);
      });
    };
    if constexpr (kWalk == Walk::kAlongRow) {
      constexpr int kUsual = Base::row_stride(7 * 7);  // so that the compiler knows the step
      if (stride_ == kUsual) return compute(Int<kUsual / Arith::kPerWord>{});
      compute(stride_ / Arith::kPerWord);
    } else {
      compute(stride_);
    }
  }

  AlignedBuffer<float> q_inner_, k_inner_, g_inner_;  // [token (with pairs: pair)][channel]
  AlignedBuffer<float> scales_, ones_;
  RowStage<Arith, T> stage_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
