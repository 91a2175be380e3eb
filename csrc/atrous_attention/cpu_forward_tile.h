// Forward of one window and head: out = softmax(S) V and the log-sum-exp of S.
#pragma once

#include "cpu_vector_tile.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// From Q and K to exponentials and their sums.
template <class Arith>
class Softmax : public VectorTile<Arith> {
  using Base = VectorTile<Arith>;

 protected:
  using Base::kPairs, Base::words_, Base::stride_, Base::scale_, Base::bias_panels_, Base::count_,
      Base::vectors_, Base::has_last_, Base::run_, Base::last_bias_, Base::max_rows_;

  explicit Softmax(const AtrousAttentionParams& p)
      : Base(p),
        q_(words_ * stride_),
        k_(max_rows_ * words_),
        s_(max_rows_ * stride_),
        last_q_(words_),
        last_s_(max_rows_),
        inverse_(max_rows_),
        lse_(max_rows_) {}

  __attribute__((noinline)) void softmax(const WordRows& keys) {
    for_column_blocks(vectors_, [&](int vector, auto width) __attribute__((always_inline)) {
      constexpr int C = decltype(width)::value;
      F top[C];
      scores(keys, vector * kLanes, top);
      exponentials(vector * kLanes, top);
    });
    if (has_last_) softmax_of_last(keys);
  }

  AlignedBuffer<float> q_, k_, s_;  // [word][query], [key][word], [key][query]
  AlignedBuffer<float> last_q_, last_s_;
  AlignedBuffer<float> inverse_, lse_;  // of a query: 1 / sum of exponentials, log2 of the sum

 private:
  // S of C vectors of queries from `lane` on, and the largest score of each query.
  template <int C>
  void scores(const WordRows& keys, int lane, F (&top)[C]) {
    for (F& x : top) x = broadcast(-__builtin_inff());
    const F scale = broadcast(scale_);
    const float* bias = bias_panels_ + lane;
    float* s = s_ + lane;
    const int* run = run_;
    const int stride = stride_;
    const auto finish = [&](int t, auto& acc) __attribute__((always_inline)) {
      constexpr int R = sizeof acc / sizeof acc[0];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
          const F x = fma(acc[r][j], scale, load(bias + run[t + r] + j * kLanes));
          store(s + (t + r) * stride + j * kLanes, x);
          top[j] = max(top[j], x);
        }
      }
    };
    this->template key_products<C>(keys, q_ + lane, finish);
  }

  // Exponentials in place of the scores; with pairs, a word for two keys.
  template <int C>
  void exponentials(int lane, const F (&top)[C]) {
    F total[C] = {};
    float* s = s_ + lane;
    const int stride = stride_, count = count_;
    const auto next = [&](int t, int j) __attribute__((always_inline)) {
      const F x = Arith::exp(load(s + t * stride + j * kLanes) - top[j]);
      total[j] = total[j] + x;
      return x;
    };
    for (int t = 0; t < count; t += Arith::kPerWord) {
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) {
        F x = next(t, j);
        if constexpr (kPairs) x = Arith::pack(x, t + 1 < count ? next(t + 1, j) : zero());
        store(s + t / Arith::kPerWord * stride + j * kLanes, x);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      store(inverse_ + lane + j * kLanes, broadcast(1.f) / total[j]);
      store(lse_ + lane + j * kLanes, top[j] + log2(total[j]));
    }
  }

  void softmax_of_last(const WordRows& keys) {
    const int last = count_ - 1;
    this->last_products(keys, last_q_, last_s_);
    F top = broadcast(-__builtin_inff()), total = zero();
    for (int t = 0; t < count_; t += kLanes) {
      F x = fma(load(last_s_ + t), broadcast(scale_), load(bias_panels_ + last_bias_ + t));
      x = select_first(x, top, count_ - t);
      store(last_s_ + t, x);
      top = max(top, x);
    }
    top = broadcast(largest(top));
    for (int t = 0; t < count_; t += kLanes) {
      const F x = select_first(Arith::exp(load(last_s_ + t) - top), zero(), count_ - t);
      total = total + x;
      store(last_s_ + t, x);
    }
    this->put_column(s_ + last, last_s_);
    total = broadcast(sum(total));
    inverse_[last] = (broadcast(1.f) / total)[0];
    lse_[last] = (top + log2(total))[0];
  }
};

template <class Arith, class T>
class ForwardTile : Softmax<Arith> {
  using Base = Softmax<Arith>;
  using Base::kPairs, Base::p_, Base::e_, Base::words_, Base::columns_, Base::stride_,
      Base::prefetcher_, Base::tokens_, Base::count_, Base::vectors_, Base::max_rows_;

 public:
  explicit ForwardTile(const AtrousAttentionParams& p)
      : Base(p), v_(max_rows_ * columns_), stage_(max_rows_, columns_) {}

  void begin_chunk() {}
  void end_chunk(int64_t) {}

  void operator()(const Tokens& tokens, int head, const Tokens& next) {
    this->begin(tokens, head);
    start_prefetch(next, head);
    pack(head);
    this->softmax(this->template words_in_map<T>() ? this->map_rows(qkv(head, 1))
                                                   : this->packed_rows(this->k_));
    stage_(out_rows(tokens, head), count_, e_, [&](auto rows) {
      this->template channel_products<Walk::kAlongColumn>(this->s_, stride_, v_, this->inverse_,
                                                          rows);
    });
    float* lse = static_cast<float*>(p_.lse) + head;
    for (int s = 0; s < count_; ++s) lse[tokens.row[s]] = this->lse_[s] * kLn2;
  }

 private:
  const T* qkv(int head, int part) const {
    return static_cast<const T*>(p_.qkv) + head * p_.qkv_stride[5] + part * p_.qkv_stride[4];
  }

  Rows<T> out_rows(const Tokens& tokens, int head) const {
    return {static_cast<T*>(p_.out) + head * int64_t{e_}, tokens.row, e_};
  }

  void start_prefetch(const Tokens& next, int head) {
    // With one head all during the scores: what is fetched later may come too late.
    prefetcher_.start(next.count, this->key_blocks() + (p_.h > 1 ? this->channel_blocks() : 0));
    const int bytes = e_ * sizeof(T);
    prefetcher_.add(qkv(head, 0), next.qkv, sizeof(T), bytes, p_.qkv_stride[4] * sizeof(T));
    if (!this->streams(out_rows(next, head)))
      prefetcher_.add(out_rows(next, head).base, next.row, bytes, bytes);
  }

  void pack(int head) {
    const int64_t* offsets = tokens_->qkv;
    const T *q = qkv(head, 0), *v = qkv(head, 2);
    pack_columns<Arith>(this->q_, stride_, q, offsets, vectors_, words_, e_);
    if (!this->template words_in_map<T>())
      pack_rows<Arith>(this->k_, words_, qkv(head, 1), offsets, count_, e_);
    if constexpr (kPairs)
      pack_row_pairs<Arith>(v_, columns_, v, offsets, count_, e_);
    else
      pack_rows<Arith>(v_, words_, v, offsets, count_, e_);
    if (this->has_last_) pack_rows<Arith>(this->last_q_, words_, q, offsets + count_ - 1, 1, e_);
  }

  AlignedBuffer<float> v_;  // [key][channel]
  RowStage<Arith, T> stage_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
