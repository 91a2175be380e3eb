// A block of tokens of one image against all heads and queries, in vector code.
//
// With so few queries the op waits for memory. Tokens are therefore read in the order in which they
// lie there: tile by tile, all heads of a tile before the next one, whose rows are fetched beside
// the arithmetic. Gradients are collected for a tile and leave it in one piece.
#pragma once

#include "../common/aligned_buffer.h"
#include "cpu_tile.h"
#include "single_query_attention.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using SingleQueryParams = SingleQueryAttentionParams;

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

inline int64_t row_floats(const SingleQueryParams& p) { return p.dv + 2; }

// Partial result of a block, head and query: largest score (base 2), sum of exponentials, and the
// values weighed by them.
inline float* partial_row(const SingleQueryParams& p, int64_t block, int head, int query) {
  return static_cast<float*>(p.workspace) + ((block * p.h + head) * p.G + query) * row_floats(p);
}

template <class T>
class TokenBlock {
 public:
  explicit TokenBlock(const SingleQueryParams& p)
      : p_(p),
        rows_(p.h * p.G),
        key_floats_(round_up_to_lanes(p.d)),
        value_floats_(round_up_to_lanes(p.dv)),
        scale_(static_cast<float>(p.scale)),
        scale_log2_(static_cast<float>(p.scale * 1.4426950408889634)),
        is_excluded_(p.excluded ? p.N : 0),
        mask_(kTokenBlock),
        q_(rows_ * key_floats_),
        s_(rows_ * kTokenBlock),
        sums_(rows_ * std::max(key_floats_, value_floats_)),
        g_(is_backward() ? rows_ * value_floats_ : 0),
        lse_(is_backward() ? rows_ : 0),
        delta_(is_backward() ? rows_ : 0),
        ds_(is_backward() ? p.G * kLanes : 0),
        grad_k_(p.grad_k ? kLanes * p.h * p.d : 0),
        grad_v_(p.grad_v ? kLanes * p.h * p.dv : 0) {}

  ~TokenBlock() { stream_fence(); }

  void forward(int64_t block) {
    begin(block);
    for (int tile = 0; tile < tiles_; ++tile)
      for (int head = 0; head < p_.h; ++head) {
        prefetch(tile + 1 < tiles_ ? p_.k : p_.v, (tile + 1) % tiles_ * kLanes, head);
        tile_scores(scores(head, tile), queries(head), p_.G, rows(p_.k, p_.d, tile, head));
      }
    for (int row = 0; row < rows_; ++row)
      exponentials(s_ + row * kTokenBlock, partial_row(p_, block, 0, row));
    clear_sums(value_floats_);
    for (int tile = 0; tile < tiles_; ++tile)
      for (int head = 0; head < p_.h; ++head) {
        prefetch(tile + 1 < tiles_ ? p_.v : p_.k, (tile + 1) * kLanes, head);
        add_tokens(sums(head, value_floats_), scores(head, tile), p_.G,
                   rows(p_.v, p_.dv, tile, head));
      }
    for (int row = 0; row < rows_; ++row)
      std::copy_n(sums_ + row * value_floats_, p_.dv, partial_row(p_, block, 0, row) + 2);
  }

  void backward(int64_t block) {
    begin(block);
    clear_sums(key_floats_);
    for (int tile = 0; tile < tiles_; ++tile) {
      for (int head = 0; head < p_.h; ++head) backward_tile(tile, head);
      send(p_.grad_k, grad_k_, tile, p_.d);
      send(p_.grad_v, grad_v_, tile, p_.dv);
    }
    if (!p_.grad_query) return;
    float* partial = static_cast<float*>(p_.workspace) + block * rows_ * p_.d;
    for (int row = 0; row < rows_; ++row)
      std::copy_n(sums_ + row * key_floats_, p_.d, partial + row * p_.d);
  }

 private:
  bool is_backward() const { return p_.grad_out.data; }

  // Which tokens, and which of them are no keys: 0 or -inf in each lane.
  void begin(int64_t block) {
    const int64_t image = block / token_blocks(p_);
    if (image != image_) begin_image(image);
    first_ = block % token_blocks(p_) * kTokenBlock;
    tokens_ = static_cast<int>(std::min<int64_t>(kTokenBlock, p_.N - first_));
    tiles_ = ceil_div(tokens_, kLanes);
    for (int t = 0; t < tiles_ * kLanes; ++t) {
      const bool is_key = t < tokens_ && !(p_.excluded && is_excluded_[first_ + t]);
      mask_[t] = is_key ? 0.f : -__builtin_inff();
    }
  }

  void begin_image(int64_t image) {
    const bool same_queries = image_ >= 0 && p_.shared;
    image_ = image;
    if (!same_queries) gather(p_.query, p_.d, q_, key_floats_);
    if (p_.excluded) {
      std::fill_n(static_cast<char*>(is_excluded_), p_.N, 0);
      const int64_t* exclude = p_.exclude + image * p_.excluded;
      for (int64_t i = 0; i < p_.excluded; ++i) is_excluded_[exclude[i]] = 1;
    }
    if (is_backward()) gather_grads();
  }

  // Queries, or gradients of the output, of the image: [head][query][channel].
  void gather(const AttentionTokens& tokens, int e, float* to, int64_t step) {
    for (int head = 0; head < p_.h; ++head)
      for (int g = 0; g < p_.G; ++g, to += step)
        for (int c = 0; c < e; c += kLanes)
          store(to + c, FloatArith::load_words(row<T>(tokens, g, head), c, e));
  }

  // With D = <grad_out, out> and the log-sum-exp (base 2) of every head and query.
  void gather_grads() {
    gather(p_.grad_out, p_.dv, g_, value_floats_);
    const float* lse = static_cast<const float*>(p_.lse) + image_ * rows_;
    for (int head = 0; head < p_.h; ++head)
      for (int g = 0; g < p_.G; ++g) {
        const int row = head * p_.G + g;
        const T* out = static_cast<const T*>(p_.out) + ((image_ * p_.G + g) * p_.h + head) * p_.dv;
        F delta = zero();
        for (int c = 0; c < p_.dv; c += kLanes)
          delta =
              fma(load(g_ + row * value_floats_ + c), FloatArith::load_words(out, c, p_.dv), delta);
        delta_[row] = sum(delta);
        lse_[row] = lse[row] * kLog2E;
      }
  }

  template <class Element>
  const Element* row(const AttentionTokens& tokens, int64_t token, int head) const {
    return static_cast<const Element*>(tokens.data) + image_ * tokens.stride[0] +
           token * tokens.stride[1] + head * tokens.stride[2];
  }

  TileRows<T> rows(const AttentionTokens& tokens, int e, int tile, int head) const {
    return {row<T>(tokens, first_ + tile * kLanes, head), tokens.stride[1],
            std::min(kLanes, tokens_ - tile * kLanes), e};
  }
  QueryRows queries(int head) const { return {q_ + head * p_.G * key_floats_, key_floats_}; }
  QueryRows grads(int head) const { return {g_ + head * p_.G * value_floats_, value_floats_}; }
  QueryRows scores(int head, int tile) const {
    return {s_ + head * p_.G * kTokenBlock + tile * kLanes, kTokenBlock};
  }
  QueryRows sums(int head, int64_t step) const { return {sums_ + head * p_.G * step, step}; }
  void clear_sums(int64_t step) { std::fill_n(static_cast<float*>(sums_), rows_ * step, 0.f); }

  // The rows of a head in the tile at token `first` of the block, unless the image ends before.
  void prefetch(const AttentionTokens& tokens, int64_t first, int head) const {
    const int64_t left = p_.N - first_ - first;
    const char* at = reinterpret_cast<const char*>(row<T>(tokens, first_ + first, head));
    const int64_t step = tokens.stride[1] * sizeof(T);
    const int bytes = (&tokens == &p_.k ? p_.d : p_.dv) * sizeof(T);
    for (int t = 0; t < kLanes && t < left; ++t, at += step)
      for (int line = 0; line < bytes; line += 64) __builtin_prefetch(at + line, 0, 2);
  }

  // Exponentials of a query's scores in place; their base and sum to partial[0] and partial[1].
  void exponentials(float* s, float* partial) {
    F top = broadcast(-__builtin_inff()), total = zero();
    for (int i = 0; i < tiles_ * kLanes; i += kLanes) {
      const F x = fma(load(s + i), broadcast(scale_log2_), load(mask_ + i));
      store(s + i, x);
      top = max(top, x);
    }
    const float base = largest(top);
    partial[0] = base;
    const F b = broadcast(base == -__builtin_inff() ? 0.f : base);  // nothing but excluded tokens
    for (int i = 0; i < tiles_ * kLanes; i += kLanes) {
      const F x = exp2(load(s + i) - b);
      total = total + x;
      store(s + i, x);
    }
    partial[1] = sum(total);
  }

  void backward_tile(int tile, int head) {
    const TileRows<T> keys = rows(p_.k, p_.d, tile, head), values = rows(p_.v, p_.dv, tile, head);
    const QueryRows weights{s_, kLanes}, score_grads{ds_, kLanes};
    const int head_row = head * p_.G;
    prefetch(p_.k, (tile + 1) * kLanes, head);
    if (!p_.values_are_keys) prefetch(p_.v, (tile + 1) * kLanes, head);
    tile_scores(weights, queries(head), p_.G, keys);
    const F mask = load(mask_ + tile * kLanes);
    for (int g = 0; g < p_.G; ++g) {
      const F x = fma(load(weights[g]), broadcast(scale_log2_), mask);
      store(weights[g], exp2(x - broadcast(lse_[head_row + g])));
    }
    if (p_.grad_v)
      expand_queries(grad_v_ + head * p_.dv, p_.h * p_.dv, {{weights, grads(head)}}, p_.G,
                     values.count, p_.dv);
    if (!p_.grad_k && !p_.grad_query) return;
    tile_scores(score_grads, grads(head), p_.G, values);
    for (int g = 0; g < p_.G; ++g) {
      const F x = load(weights[g]) * (load(score_grads[g]) - broadcast(delta_[head_row + g]));
      store(score_grads[g], x * broadcast(scale_));
    }
    T* grad_k = grad_k_ + head * p_.d;
    if (p_.grad_k && p_.values_are_keys)
      expand_queries(grad_k, p_.h * p_.d, {{score_grads, queries(head)}, {weights, grads(head)}},
                     p_.G, keys.count, p_.d);
    else if (p_.grad_k)
      expand_queries(grad_k, p_.h * p_.d, {{score_grads, queries(head)}}, p_.G, keys.count, p_.d);
    if (p_.grad_query) add_tokens(sums(head, key_floats_), score_grads, p_.G, keys);
  }

  // A tile of gradients to its place in a contiguous (B, N, h, e), unless not asked for.
  void send(void* grad, const T* tile_grads, int tile, int e) const {
    if (!grad) return;
    const int64_t token = p_.h * static_cast<int64_t>(e), first = first_ + tile * kLanes;
    const int64_t count = std::min<int64_t>(kLanes, p_.N - first);
    copy_streaming(static_cast<T*>(grad) + (image_ * p_.N + first) * token, tile_grads,
                   count * token * sizeof(T));
  }

  const SingleQueryParams& p_;
  const int rows_;  // pairs of a head and a query
  const int64_t key_floats_, value_floats_;
  const float scale_, scale_log2_;
  AlignedBuffer<char> is_excluded_;  // of every token of the image
  AlignedBuffer<float> mask_;        // of each token of the block, added to its scores
  AlignedBuffer<float> q_;           // queries: [head][query][channel]
  AlignedBuffer<float> s_;           // scores, then weights: [head][query][token], or of one tile
  AlignedBuffer<float> sums_;        // of values or keys: [head][query][channel]
  AlignedBuffer<float> g_;           // gradients of the output: [head][query][channel]
  AlignedBuffer<float> lse_, delta_;
  AlignedBuffer<float> ds_;           // scaled gradients of the scores of one tile
  AlignedBuffer<T> grad_k_, grad_v_;  // of one tile: [token][head][channel]

  int64_t image_ = -1, first_ = 0;
  int tokens_ = 0, tiles_ = 0;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
