// Backward of mixed_head_attention, panel by panel. A chunk keeps sums of its own: of the keys' and
// values' gradients (head, key, channel), and of the layers'.
#pragma once

#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Where the sums of a chunk lie, in elements; those that nobody asks for take no place.
template <class T>
struct MixedSums {
  using Scalar = typename Arithmetic<T>::Scalar;
  int64_t k = 0, v = 0, w1 = 0, w2 = 0, b2 = 0, chunk = 0;
  Scalar* data;

  explicit MixedSums(const Params& p) : data(static_cast<Scalar*>(p.workspace)) {
    const int64_t tokens = p.h * p.M * whole_vectors<T>(p.d), layer = p.g * p.h;
    k = take(p.grad_k ? tokens : 0);
    v = take(p.grad_v ? tokens : 0);
    w1 = take(p.grad_w1 ? layer : 0);
    w2 = take(p.grad_w2 ? layer : 0);
    b2 = take(p.grad_b2 ? p.h : 0);
  }

  Scalar* at(int64_t index) const { return data + index * chunk; }

 private:
  int64_t take(int64_t count) {
    const int64_t first = chunk;
    chunk += whole_vectors<T>(count);
    return first;
  }
};

template <class T>
class MixedBackward : MixedPanels<T> {
  using Base = MixedPanels<T>;
  using Base::p_, Base::cut_, Base::tile_, Base::kCount, Base::size, Base::words_;
  using typename Base::Scalar, typename Base::V;

 public:
  explicit MixedBackward(const Params& p)
      : Base(p, 2 * p.g + p.h),
        sums_(p),
        rows_(p.h * cut_.queries * words_),
        needs_scores_(p.grad_q || p.grad_w1),
        scores_(size(p.h * cut_.pitch)),
        weights_(size(p.g * cut_.pitch)),
        grads_(size(p.g * cut_.pitch)),
        grad_(size(rows_)),
        grad_t_(size(rows_)),
        grad_q_(size(rows_)),
        w1_transposed_(size(p.h * p.g)),
        w2_transposed_(size(p.g * p.h)) {
    // Scores are in no unit here: the gradients of <q, k> get the scale by way of w1.
    for (int64_t g = 0; g < p.g; ++g)
      for (int64_t head = 0; head < p.h; ++head) {
        w1_transposed_[head * p.g + g] =
            this->w1_[g * p.h + head] * static_cast<Scalar>(Base::kLn2);
        w2_transposed_[g * p.h + head] = this->w2_[head * p.g + g];
      }
  }

  void operator()(int64_t chunk) {
    sum_ = sums_.at(chunk);
    zero(sum_, sums_.chunk);
    this->for_panels(chunk, [&](int64_t first, int64_t count) {
      this->gather_heads(p_.grad, this->image_, first, count, cut_.queries, grad_);
      if (needs_scores_) this->transpose_heads(grad_, grad_t_);
      weigh();
      this->for_tiles([&](int64_t key, int64_t keys) { pass_values(key, keys, count); });
      if (!needs_scores_) return;
      for (int64_t g = 0; g < p_.g; ++g) pass_softmax(g);
      zero(&grad_q_[0], rows_);
      this->for_tiles([&](int64_t key, int64_t keys) { pass_scores(key, keys, count); });
      if (p_.grad_q) this->store_heads(grad_q_, first, count, 1, p_.grad_q);
    });
  }

 private:
  // S and P of all keys. A softmax again: of large scores the saved log-sum-exp is too coarse.
  // Lanes without a query have equal weights, and gradients of zero.
  void weigh() {
    this->for_tiles([&](int64_t key, int64_t keys) {
      Scalar* scores = scores_ + key * cut_.queries;
      this->token_products(this->k_, this->qt_, key, keys, scores, cut_.pitch);
      this->mix(this->w1_, p_.g, p_.h, scores, cut_.pitch, weights_ + key * cut_.queries,
                cut_.pitch, keys);
    });
    for (int64_t g = 0; g < p_.g; ++g)
      softmax_over_keys<Scalar>(weights_ + g * cut_.pitch, p_.M, cut_.queries, cut_.queries,
                                [](int64_t, V, V) {});
  }

  // From the gradient of out to that of P, the second layer and the values.
  void pass_values(int64_t key, int64_t keys, int64_t count) {
    const Scalar* weights = weights_ + key * cut_.queries;
    if (needs_scores_) {
      this->token_products(this->v_, grad_t_, key, keys, tile_, cut_.tile_pitch);
      this->mix(w2_transposed_, p_.g, p_.h, tile_, cut_.tile_pitch, grads_ + key * cut_.queries,
                cut_.pitch, keys);
    }
    if (p_.grad_w2) {
      lane_products<Scalar>(&tile_[0], cut_.tile_pitch, p_.h, weights, cut_.pitch, p_.g,
                            this->vectors(keys), sum_ + sums_.w2, p_.g);
      add_rows(keys);
    }
    if (!p_.grad_v) return;
    this->mix(this->w2_, p_.h, p_.g, weights, cut_.pitch, tile_, cut_.tile_pitch, keys, this->b2_);
    for (int64_t head = 0; head < p_.h; ++head)
      this->add_to_keys(head, keys, grad_ + head * cut_.queries * words_, count,
                        sum_ + sums_.v + (head * p_.M + key) * words_);
  }

  // The sums of dA over a tile to that of the second bias.
  void add_rows(int64_t keys) {
    for (int64_t head = 0; head < p_.h; ++head) {
      const Scalar* row = tile_ + head * cut_.tile_pitch;
      V total{};
      for (int64_t x = 0; x < keys * cut_.queries; x += kCount) total = total + load(row + x);
      sum_[sums_.b2 + head] += sum(total);
    }
  }

  // The gradient of Z, in place of that of P.
  void pass_softmax(int64_t g) {
    const int64_t step = cut_.queries;
    for (int64_t i = 0; i < step; i += kCount) {
      const Scalar* p = weights_ + g * cut_.pitch + i;
      Scalar* grads = grads_ + g * cut_.pitch + i;
      V dot{};
      for (int64_t key = 0; key < p_.M; ++key)
        dot = fma(load(p + key * step), load(grads + key * step), dot);
      for (int64_t key = 0; key < p_.M; ++key)
        store(grads + key * step, load(p + key * step) * (load(grads + key * step) - dot));
    }
  }

  // From the gradient of Z to the first layer, queries and keys.
  void pass_scores(int64_t key, int64_t keys, int64_t count) {
    const Scalar* grads = grads_ + key * cut_.queries;
    if (p_.grad_w1)
      lane_products<Scalar>(grads, cut_.pitch, p_.g, scores_ + key * cut_.queries, cut_.pitch, p_.h,
                            this->vectors(keys), sum_ + sums_.w1, p_.h);
    if (!p_.grad_q) return;
    this->mix(w1_transposed_, p_.h, p_.g, grads, cut_.pitch, tile_, cut_.tile_pitch, keys);
    for (int64_t head = 0; head < p_.h; ++head) {
      const int64_t row = (head * p_.M + key) * words_, panel = head * cut_.queries * words_;
      this->add_to_queries(head, keys, this->k_ + row, count, grad_q_ + panel);
      this->add_to_keys(head, keys, this->q_ + panel, count, sum_ + sums_.k + row);
    }
  }

  const MixedSums<T> sums_;
  const int64_t rows_;
  const bool needs_scores_;
  Scalar* sum_ = nullptr;                           // of the chunk
  AlignedBuffer<Scalar> scores_, weights_, grads_;  // [head][key][query]: S, P, and dP or dZ
  AlignedBuffer<Scalar> grad_;                      // [head][query][channel]
  AlignedBuffer<Scalar> grad_t_;                    // [head][channel][query]
  AlignedBuffer<Scalar> grad_q_;                    // [head][query][channel]
  AlignedBuffer<Scalar> w1_transposed_, w2_transposed_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
