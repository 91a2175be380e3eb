// Backward of one window and head, from qkv, bias, out and the log-sum-exp L:
//
//   P = exp(S - L)    dS = P (dO V^T - D)  with D = <dO, out> of each query
//   dV = P^T dO       dK = scale dS^T Q    dQ = scale dS K    dbias = sums of dS
#pragma once

#include "cpu_vector_tile.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// From Q, K, V, dO and the statistics D and L to P, dS and the gradient of the bias.
template <class Arith>
class ScoreGrads : public VectorTile<Arith> {
  using Base = VectorTile<Arith>;

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
        delta_(max_rows_),
        lse_(max_rows_),
        s_(max_rows_ * stride_),
        rows_(kPairs ? max_rows_ * stride_ / 2 : 0),
        last_p_(max_rows_),
        last_ds_(max_rows_) {}

  // P into s_ (with pairs, into rows_ too).
  __attribute__((noinline)) void probabilities() {
    for_column_blocks(vectors_, [&](int vector, auto width) __attribute__((always_inline)) {
      probability_block<decltype(width)::value>(vector * kLanes);
    });
    if (!has_last_) return;
    const F lse = broadcast(lse_[count_ - 1]);
    this->last_products(PackedRows{k_}, last_q_, last_p_);
    for (int t = 0; t < count_; t += kLanes) {
      const F s = fma(load(last_p_ + t), broadcast(scale_), load(bias_panels_ + last_bias_ + t));
      store(last_p_ + t, select_first(exp2(s - lse), zero(), count_ - t));
    }
    put_last(last_p_);
  }

  // dS in place of P, and its share of the gradient of the bias. With pairs s_ ends up with words.
  __attribute__((noinline)) void score_grads() {
    for_column_blocks(vectors_, [&](int vector, auto width) __attribute__((always_inline)) {
      grad_block<decltype(width)::value>(vector * kLanes);
      if constexpr (kPairs) pair_keys<decltype(width)::value>(vector * kLanes);
    });
    if (!has_last_) return;
    const F delta = broadcast(delta_[count_ - 1]);
    this->last_products(PackedRows{v_}, last_g_, last_ds_);
    for (int t = 0; t < count_; t += kLanes) {
      const F ds = load(last_p_ + t) * (load(last_ds_ + t) - delta);
      store(last_ds_ + t, select_first(ds, zero(), count_ - t));
      if (p_.grad_bias) add_to(bias_grad_panels_ + last_bias_ + t, load(last_ds_ + t));
    }
    put_last(last_ds_);
    if constexpr (kPairs) this->put_column(s_ + count_ - 1, last_ds_);
  }

  BiasGradPanels grad_bias_;
  float* bias_grad_panels_ = nullptr;
  AlignedBuffer<float> qt_, gt_;          // Q, dO: [word][query]
  AlignedBuffer<float> k_, v_;            // [key][word]
  AlignedBuffer<float> last_q_, last_g_;  // words of the last query
  AlignedBuffer<float> delta_, lse_;      // D, L in units of log2
  AlignedBuffer<float> s_;                // P, later dS: [key][query]
  AlignedBuffer<float> rows_;             // with pairs: the same as bf16

 private:
  template <int C>
  void probability_block(int lane) {
    const auto finish = [&](int t, auto& acc) __attribute__((always_inline)) {
      constexpr int R = sizeof acc / sizeof acc[0];
      const F scale = broadcast(scale_);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const float* bias = bias_panels_ + run_[t + r] + lane;
        float* s = s_ + (t + r) * stride_ + lane;
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
          const F x = fma(acc[r][j], scale, load(bias + j * kLanes));
          const F p = exp2(x - load(lse_ + lane + j * kLanes));
          store(s + j * kLanes, p);
          if constexpr (kPairs) store(row(t + r) + lane + j * kLanes, p);
        }
      }
    };
    this->template key_products<C>(PackedRows{k_}, qt_ + lane, finish);
  }

  template <int C>
  void grad_block(int lane) {
    const int lanes = count_ - lane;
    const auto finish = [&](int t, auto& acc) __attribute__((always_inline)) {
      constexpr int R = sizeof acc / sizeof acc[0];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        float* s = s_ + (t + r) * stride_ + lane;
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
          const F delta = load(delta_ + lane + j * kLanes);
          acc[r][j] = load(s + j * kLanes) * (acc[r][j] - delta);
          store(s + j * kLanes, acc[r][j]);
          if constexpr (kPairs) store(row(t + r) + lane + j * kLanes, acc[r][j]);
        }
        if (!p_.grad_bias) continue;
        float* sums = bias_grad_panels_ + run_[t + r] + lane;
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
          F ds = acc[r][j];
          if (lanes < C * kLanes) ds = select_first(ds, zero(), lanes - j * kLanes);
          add_to(sums + j * kLanes, ds);
        }
      }
    };
    this->template key_products<C>(PackedRows{v_}, gt_ + lane, finish);
  }

  // dS of C vectors of queries, in place, as words of two keys each.
  template <int C>
  void pair_keys(int lane) {
    for (int t = 0; t < count_; t += 2) {
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) {
        const float* s = s_ + t * stride_ + lane + j * kLanes;
        const F high = t + 1 < count_ ? load(s + stride_) : zero();
        store(s_ + t / 2 * stride_ + lane + j * kLanes, Arith::pack(load(s), high));
      }
    }
  }

  // The last query's values into its column, with pairs into that of rows_.
  void put_last(float* values) const {
    const int last = count_ - 1;
    if constexpr (kPairs) {
      for (int t = 0; t < count_; ++t) {
        row(t)[last] = from_float<bf16>(values[t]);
        row(t)[last + 1] = {0};  // the other half of the word
      }
    } else {
      this->put_column(s_ + last, values);
    }
  }

  static void add_to(float* sums, F v) { store(sums, load(sums) + v); }
  bf16* row(int t) const { return reinterpret_cast<bf16*>(rows_ + t * (stride_ / 2)); }

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
    statistics(head);
    this->probabilities();
    if (p_.grad_qkv) store_grad<Walk::kAlongRow>(head, 2, rows(), g_inner_, ones_);
    this->score_grads();
    if (!p_.grad_qkv) return;
    store_grad<Walk::kAlongRow>(head, 1, rows(), q_inner_, scales_);
    store_grad<Walk::kAlongColumn>(head, 0, this->s_, kPairs ? k_inner_ : this->k_, scales_);
  }

 private:
  const T* qkv(int head, int part) const {
    return static_cast<const T*>(p_.qkv) + head * p_.qkv_stride[5] + part * p_.qkv_stride[4];
  }
  const T* grad_out(int head) const {
    return static_cast<const T*>(p_.grad_out) + head * p_.grad_out_stride[4];
  }
  const T* out(int head) const { return static_cast<const T*>(p_.out) + head * int64_t{e_}; }
  const float* lse(int head) const { return static_cast<const float*>(p_.lse) + head; }

  void start_prefetch(const Tokens& next, int head) {
    const int blocks = 2 * column_blocks(vectors_) + 3 * column_blocks(ceil_div(e_, kLanes));
    prefetcher_.start(next.count, 6 * kBlockRows<2> / blocks + 1);
    for (int part = 0; part < 3; ++part)
      prefetcher_.add(qkv(head, part), next.qkv, sizeof(T), e_ * sizeof(T));
    prefetcher_.add(grad_out(head), next.grad_out, sizeof(T), e_ * sizeof(T));
    prefetcher_.add(out(head), next.row, e_ * sizeof(T), e_ * sizeof(T));
    if (head == 0) prefetcher_.add(lse(0), next.row, sizeof(float), p_.h * sizeof(float));
  }

  void pack(int head) {
    const int64_t *offsets = tokens_->qkv, *grad = tokens_->grad_out;
    const T *q = qkv(head, 0), *k = qkv(head, 1), *g = grad_out(head);
    pack_rows<Arith>(this->k_, words_, k, offsets, count_, e_);
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

  // D and L of every query.
  void statistics(int head) {
    const T *out = this->out(head), *grad = grad_out(head);
    const float* lse = this->lse(head);
    for (int s = 0; s < count_; s += kLanes) {
      F partial[kLanes] = {};
      for (int c = 0; c < e_; c += kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const F o = FloatArith::load_words(out + tokens_->row[s + i] * e_, c, e_);
          const F g = FloatArith::load_words(grad + tokens_->grad_out[s + i], c, e_);
          partial[i] = fma(o, g, partial[i]);
        }
      }
      store(this->delta_ + s, sums(partial));
      for (int i = 0; i < kLanes; ++i) this->lse_[s + i] = lse[tokens_->row[s + i]] * kLog2E;
    }
  }

  const float* rows() const { return kPairs ? this->rows_ : this->s_; }

  // One part (0 for dQ, 1 dK, 2 dV) of the gradient, from P or dS and the tokens on the other side.
  template <Walk kWalk>
  void store_grad(int head, int part, const float* s, const float* other, const float* factors) {
    const int step = kWalk == Walk::kAlongRow ? stride_ / Arith::kPerWord : stride_;
    T* base = static_cast<T*>(p_.grad_qkv) + int64_t{part * p_.h + head} * e_;
    stage_({base, tokens_->row, 3 * int64_t{e_}}, count_, e_, [&](auto grad) {
      this->template channel_products<kWalk>(s, step, other, factors, grad);
    });
  }

  AlignedBuffer<float> q_inner_, k_inner_, g_inner_;  // [token (with pairs: pair)][channel]
  AlignedBuffer<float> scales_, ones_;
  RowStage<Arith, T> stage_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
