// A block of tokens of one image against the queries of one head, in vector code.
//
// Keys and values are transposed on the way in, so that the tokens are in the lanes: scores, masks
// and exponentials are whole vectors however few queries there are. All arithmetic is float32: with
// so few queries the op waits for memory, and 16-bit data is converted while it arrives.
#pragma once

#include <algorithm>

#include "../atrous_attention/cpu_packing.h"
#include "../common/attention/cpu_panels.h"
#include "single_query_attention.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using SingleQueryParams = SingleQueryAttentionParams;

inline int64_t row_floats(const SingleQueryParams& p) { return p.dv + 2; }

// Partial result of a block, head and query: largest score (base 2), sum of exponentials, and the
// values weighed by them.
inline float* partial_row(const SingleQueryParams& p, int64_t block, int head, int query) {
  return static_cast<float*>(p.workspace) + ((block * p.h + head) * p.G + query) * row_floats(p);
}

template <class T>
class TokenBlock {
  using Arith = FloatArith;

 public:
  explicit TokenBlock(const SingleQueryParams& p)
      : p_(p),
        key_(p.d),
        value_(p.dv),
        scale_(static_cast<float>(p.scale * 1.4426950408889634)),
        keys_(kTokenBlock),
        values_(kTokenBlock),
        queries_(p.G),
        grads_(p.G),
        is_excluded_(p.excluded ? p.N : 0),
        mask_(kTokenBlock),
        kt_(key_.words * kTokenBlock),
        vt_(p.grad_out.data ? value_.words * kTokenBlock : 0),
        inner_(kTokenBlock * std::max(key_.columns, value_.columns)),
        q_(p.G * key_.words),
        g_(p.G * value_.words),
        s_(p.G * kTokenBlock),
        ds_(p.G * kTokenBlock) {}

  void forward(int64_t block) {
    begin(block);
    for (int head = 0; head < p_.h; ++head) {
      gather_head(head);
      scores(q_, kt_, key_, [&](int g, int lane, F x) {
        store(s_ + g * kTokenBlock + lane, fma(x, broadcast(scale_), load(mask_ + lane)));
      });
      for (int g = 0; g < p_.G; ++g) exponentials(g, partial_row(p_, block, head, g));
      gather_rows<Arith>(inner_, value_.columns, values_.from(0), tokens_, p_.dv);
      products<Walk::kAlongRow>(s_, p_.G, tokens_, inner_, value_,
                                [&](int g) { return partial_row(p_, block, head, g) + 2; });
    }
  }

  void backward(int64_t block) {
    begin(block);
    for (int head = 0; head < p_.h; ++head) {
      gather_head(head);
      gather_grads(head);
      scores(q_, kt_, key_, [&](int g, int lane, F x) {
        const F s = fma(x, broadcast(scale_), load(mask_ + lane));
        store(s_ + g * kTokenBlock + lane, exp2(s - broadcast(lse_[g])));
      });
      if (p_.grad_v)
        products<Walk::kAlongColumn>(s_, tokens_, p_.G, g_, value_,
                                     [&](int t) { return grad_row(p_.grad_v, t, head, p_.dv); });
      if (!p_.grad_k && !p_.grad_query) continue;
      gather_columns<Arith>(vt_, kTokenBlock, values_.from(0), vectors_, value_.words, p_.dv);
      scores(g_, vt_, value_, [&](int g, int lane, F x) {
        float* p = s_ + g * kTokenBlock + lane;
        const F ds = load(p) * (x - broadcast(delta_[g]));
        store(ds_ + g * kTokenBlock + lane, ds * broadcast(static_cast<float>(p_.scale)));
      });
      if (p_.grad_k)
        products<Walk::kAlongColumn>(ds_, tokens_, p_.G, q_, key_,
                                     [&](int t) { return grad_row(p_.grad_k, t, head, p_.d); });
      if (!p_.grad_query) continue;
      gather_rows<Arith>(inner_, key_.columns, keys_.from(0), tokens_, p_.d);
      products<Walk::kAlongRow>(ds_, p_.G, tokens_, inner_, key_, [&](int g) {
        return static_cast<float*>(p_.workspace) + ((block * p_.h + head) * p_.G + g) * p_.d;
      });
    }
  }

 private:
  // Which tokens, and which of them are no keys: 0 or -inf in each lane.
  void begin(int64_t block) {
    const int64_t image = block / token_blocks(p_);
    if (image != image_) mark_excluded(image);
    image_ = image;
    first_ = block % token_blocks(p_) * kTokenBlock;
    tokens_ = static_cast<int>(std::min<int64_t>(kTokenBlock, p_.N - first_));
    vectors_ = ceil_div(tokens_, kLanes);
    for (int t = 0; t < kTokenBlock; ++t) {
      const bool is_key = t < tokens_ && !(p_.excluded && is_excluded_[first_ + t]);
      mask_[t] = is_key ? 0.f : -__builtin_inff();
    }
  }

  // Once per image: its blocks would all have to search the list.
  void mark_excluded(int64_t image) {
    if (!p_.excluded) return;
    for (int64_t t = 0; t < p_.N; ++t) is_excluded_[t] = 0;
    const int64_t* exclude = p_.exclude + image * p_.excluded;
    for (int64_t i = 0; i < p_.excluded; ++i) is_excluded_[exclude[i]] = 1;
  }

  static void fill(RowAddresses<T>& rows, const AttentionTokens& tokens, int64_t image, int head,
                   int64_t first, int64_t count) {
    AttentionTokens shifted = tokens;
    shifted.data = static_cast<const T*>(tokens.data) + first * tokens.stride[1];
    rows.clear();
    rows.add(shifted, image, head, count);
  }

  // The rows of the next head come while this one is computed.
  void prefetch(int head) {
    ahead_.start(column_blocks(vectors_));
    fetch_head(p_.k, head, p_.d);
    fetch_head(p_.v, head, p_.dv);
  }
  void fetch_head(const AttentionTokens& tokens, int head, int e) {
    const T* row = static_cast<const T*>(tokens.data) + image_ * tokens.stride[0] +
                   first_ * tokens.stride[1] + head * tokens.stride[2];
    ahead_.add(row, tokens.stride[1] * sizeof(T), tokens_, e * sizeof(T), false);
  }

  void gather_head(int head) {
    if (head + 1 < p_.h) prefetch(head + 1);
    fill(keys_, p_.k, image_, head, first_, tokens_);
    keys_.pad();
    fill(values_, p_.v, image_, head, first_, tokens_);
    values_.pad();
    fill(queries_, p_.query, image_, head, 0, p_.G);
    gather_columns<Arith>(kt_, kTokenBlock, keys_.from(0), vectors_, key_.words, p_.d);
    gather_rows<Arith>(q_, key_.words, queries_.from(0), p_.G, p_.d);
  }

  // Gradients of the output, D and the log-sum-exp (base 2) of every query.
  void gather_grads(int head) {
    fill(grads_, p_.grad_out, image_, head, 0, p_.G);
    gather_rows<Arith>(g_, value_.words, grads_.from(0), p_.G, p_.dv);
    const T* out = static_cast<const T*>(p_.out);
    const float* lse = static_cast<const float*>(p_.lse) + (image_ * p_.h + head) * p_.G;
    for (int g = 0; g < p_.G; ++g) {
      const T* row = out + ((image_ * p_.G + g) * p_.h + head) * p_.dv;
      F delta = zero();
      for (int c = 0; c < p_.dv; c += kLanes)
        delta = fma(load(g_ + g * value_.words + c), Arith::load_words(row, c, p_.dv), delta);
      delta_[g] = sum(delta);
      lse_[g] = lse[g] * kLog2E;
    }
  }

  // finish(query, lane, products) of all rows [query][word] with the tokens [word][lane].
  template <class Finish>
  void scores(const float* rows, const float* columns, const Width<Arith>& width, Finish finish) {
    const int words = width.words, steps = width.steps;
    for_column_blocks(vectors_, [&](int vector, auto vectors) __attribute__((always_inline)) {
      constexpr int C = decltype(vectors)::value;
      const int lane = vector * kLanes;
      key_products<Arith, C>(rows, words, p_.G, columns + lane, kTokenBlock, steps, ahead_,
                             [&](int g, auto& acc) __attribute__((always_inline)) {
                               constexpr int R = sizeof acc / sizeof acc[0];
#pragma GCC unroll 16
                               for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                                 for (int j = 0; j < C; ++j)
                                   finish(g + r, lane + j * kLanes, acc[r][j]);
                             });
    });
  }

  // Exponentials of a query's scores in place; their base and sum to partial[0] and partial[1].
  void exponentials(int g, float* partial) {
    float* s = s_ + g * kTokenBlock;
    F top = broadcast(-__builtin_inff()), total = zero();
    for (int i = 0; i < vectors_ * kLanes; i += kLanes) top = max(top, load(s + i));
    const float base = largest(top);
    partial[0] = base;
    const F b = broadcast(base == -__builtin_inff() ? 0.f : base);  // nothing but excluded tokens
    for (int i = 0; i < vectors_ * kLanes; i += kLanes) {
      const F x = exp2(load(s + i) - b);
      total = total + x;
      store(s + i, x);
    }
    partial[1] = sum(total);
  }

  // to(i) = sum over k of a(i, k) b[k], rows of width.e elements.
  template <Walk kWalk, class To>
  void products(const float* a, int rows, int inner, const float* b, const Width<Arith>& width,
                To to) {
    channel_products<Arith, kWalk>(
        a, kTokenBlock, rows, inner, b, width, ahead_,
        [&](int i, int vector, auto& acc) __attribute__((always_inline)) {
          constexpr int R = sizeof acc / sizeof acc[0];
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r)
            store_row(to(i + r) + vector * kLanes, acc[r], width.e - vector * kLanes, false);
        });
  }

  T* grad_row(void* grad, int token, int head, int e) const {
    return static_cast<T*>(grad) + ((image_ * p_.N + first_ + token) * p_.h + head) * e;
  }

  const SingleQueryParams& p_;
  const Width<Arith> key_, value_;
  const float scale_;
  Prefetcher ahead_{2};  // keys and values
  RowAddresses<T> keys_, values_, queries_, grads_;
  AlignedBuffer<char> is_excluded_;  // of every token of the image
  AlignedBuffer<float> mask_;        // of each token of the block, added to its scores
  AlignedBuffer<float> kt_, vt_;     // [word][token]
  AlignedBuffer<float> inner_;       // keys or values: [token][channel]
  AlignedBuffer<float> q_, g_;       // queries, gradients of the output: [query][channel]
  AlignedBuffer<float> s_, ds_;      // scores, then weights; scaled gradients of scores

  int64_t image_ = -1, first_ = 0;
  int tokens_ = 0, vectors_ = 0;
  float delta_[kMaxQueries], lse_[kMaxQueries];
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
