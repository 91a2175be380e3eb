// Forward of mixed_head_attention, panel by panel.
#pragma once

#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class T>
class MixedForward : MixedPanels<T> {
  using Base = MixedPanels<T>;
  using Base::p_, Base::cut_, Base::tile_, Base::kCount, Base::size, Base::words_;
  using typename Base::Scalar, typename Base::V;

 public:
  explicit MixedForward(const Params& p)
      : Base(p, p.g), weights_(size(p.g * cut_.pitch)), out_(size(p.h * cut_.queries * words_)) {}

  void operator()(int64_t chunk) {
    this->for_panels(chunk, [&](int64_t first, int64_t count) {
      weigh(first, count);
      zero(&out_[0], p_.h * cut_.queries * words_);
      this->for_tiles([&](int64_t key, int64_t keys) { weigh_values(key, keys, count); });
      this->store_heads(out_, first, count, 1, p_.out);
    });
  }

 private:
  // P of all mixed heads and keys, and the log-sum-exp.
  void weigh(int64_t first, int64_t count) {
    this->for_tiles([&](int64_t key, int64_t keys) {
      this->token_products(this->k_, this->qt_, key, keys, tile_, cut_.tile_pitch);
      this->mix(this->w1_, p_.g, p_.h, tile_, cut_.tile_pitch, weights_ + key * cut_.queries,
                cut_.pitch, keys);
    });
    for (int64_t g = 0; g < p_.g; ++g) {
      Scalar* lse = this->lse(g, first);
      const V bias = broadcast(this->b1_[g]), ln2 = broadcast(static_cast<Scalar>(Base::kLn2));
      softmax_over_keys<Scalar>(weights_ + g * cut_.pitch, p_.M, cut_.queries, count,
                                [&](int64_t i, V top, V total) __attribute__((always_inline)) {
                                  const V x = fma(top + log2(total), ln2, bias);
                                  const int left = static_cast<int>(count - i);
                                  left >= kCount ? store(lse + i, x)
                                                 : store_first(lse + i, x, left);
                                });
    }
  }

  void weigh_values(int64_t key, int64_t keys, int64_t count) {
    this->mix(this->w2_, p_.h, p_.g, weights_ + key * cut_.queries, cut_.pitch, tile_,
              cut_.tile_pitch, keys, this->b2_);
    for (int64_t head = 0; head < p_.h; ++head)
      this->add_to_queries(head, keys, this->v_ + (head * p_.M + key) * words_, count,
                           out_ + head * cut_.queries * words_);
  }

  AlignedBuffer<Scalar> weights_;  // [mixed head][key][query] of a panel
  AlignedBuffer<Scalar> out_;      // [head][query][channel]
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
