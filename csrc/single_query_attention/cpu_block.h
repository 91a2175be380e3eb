// A block of tokens of one image against all heads and queries, in vector code.
//
// With so few queries the op waits for memory. Tokens are therefore read once, in the order in
// which they lie there: tile by tile, keys and values of all heads of a tile before the next one.
// Weights are relative to a base per head and query, which follows the largest score at a distance,
// so that it seldom moves. Gradients are collected for a tile and leave it in one piece.
#pragma once

#include "../common/aligned_buffer.h"
#include "cpu_tile.h"
#include "single_query_attention.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using SingleQueryParams = SingleQueryAttentionParams;

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr int kTilesAhead = 2;  // that tokens are fetched before their turn
constexpr float kSlack = 8;     // of scores above their base: weights are at most 2^kSlack

inline int64_t row_floats(const SingleQueryParams& p) { return p.dv + 2; }

// Partial result of a block, head and query: base of the scores (base 2), sum of the weights, and
// the values weighed by them.
inline float* partial_row(const SingleQueryParams& p, int64_t block, int head, int query) {
  return static_cast<float*>(p.workspace) + ((block * p.h + head) * p.G + query) * row_floats(p);
}

template <class T, class Arith>
class TokenBlock {
  using Rows = TileRows<T, Arith>;

 public:
  explicit TokenBlock(const SingleQueryParams& p)
      : p_(p),
        rows_(p.h * p.G),
        steps_(ceil_div<int>(p.G, Arith::kPerWord)),
        key_words_(round_up_to_lanes(ceil_div<int>(p.d, Arith::kPerWord))),
        value_words_(round_up_to_lanes(ceil_div<int>(p.dv, Arith::kPerWord))),
        key_floats_(round_up_to_lanes(p.d)),
        value_floats_(round_up_to_lanes(p.dv)),
        scale_(static_cast<float>(p.scale)),
        scale_log2_(static_cast<float>(p.scale * 1.4426950408889634)),
        is_excluded_(p.excluded ? p.N : 0),
        mask_(kTokenBlock),
        last_keys_(kLanes * p.h * p.d),
        last_values_(p.values_are_keys ? 0 : kLanes * p.h * p.dv),
        queries_(rows_ * key_words_),
        weights_((is_backward() ? p.G : rows_) * kLanes),
        token_words_(kPairs ? p.G * kLanes : 0),
        sums_(rows_ * std::max(key_floats_, value_floats_)),
        totals_(is_backward() ? 0 : rows_ * kLanes),
        bases_(is_backward() ? 0 : rows_),
        limits_(is_backward() ? 0 : rows_),
        grads_(is_backward() ? rows_ * value_words_ : 0),
        query_rows_(kPairs && is_backward() ? p.h * steps_ * 2 * key_words_ : 0),
        grad_rows_(kPairs && is_backward() ? p.h * steps_ * 2 * value_words_ : 0),
        query_words_(kPairs && is_backward() ? 2 * steps_ * kLanes : 0),
        lse_(is_backward() ? rows_ : 0),
        delta_(is_backward() ? rows_ : 0),
        score_grads_(is_backward() ? p.G * kLanes : 0),
        grad_k_(p.grad_k ? kLanes * p.h * p.d : 0),
        grad_v_(p.grad_v ? kLanes * p.h * p.dv : 0) {}

  ~TokenBlock() { stream_fence(); }

  void forward(int64_t block) {
    begin(block);
    clear_sums(value_floats_);
    std::fill_n(static_cast<float*>(totals_), rows_ * kLanes, 0.f);
    std::fill_n(static_cast<float*>(bases_), rows_, 0.f);
    std::fill_n(static_cast<float*>(limits_), rows_, -__builtin_inff());
    for (int tile = 0; tile < tiles_; ++tile) {
      begin_tile(tile);
      forward_tile();
    }
    for (int row = 0; row < rows_; ++row) {
      float* partial = partial_row(p_, block, 0, row);
      const bool has_key = limits_[row] != -__builtin_inff();
      partial[0] = has_key ? bases_[row] : -__builtin_inff();
      partial[1] = sum(load(totals_ + row * kLanes));
      std::copy_n(sums_ + row * value_floats_, p_.dv, partial + 2);
    }
  }

  void backward(int64_t block) {
    begin(block);
    clear_sums(key_floats_);
    for (int tile = 0; tile < tiles_; ++tile) {
      begin_tile(tile);
      for (int head = 0; head < p_.h; ++head) backward_tile(head);
      send(p_.grad_k, grad_k_, p_.d);
      send(p_.grad_v, grad_v_, p_.dv);
    }
    if (!p_.grad_query) return;
    float* partial = static_cast<float*>(p_.workspace) + block * rows_ * p_.d;
    for (int row = 0; row < rows_; ++row)
      std::copy_n(sums_ + row * key_floats_, p_.d, partial + row * p_.d);
  }

 private:
  static constexpr bool kPairs = Arith::kPerWord == 2;

  bool is_backward() const { return p_.grad_out.data; }

  // Which tokens, and which of them are no keys: 0 or -inf in each lane.
  void begin(int64_t block) {
    const int64_t image = block / token_blocks(p_);
    if (image != image_) begin_image(image);
    first_ = block % token_blocks(p_) * kTokenBlock;
    tokens_ = static_cast<int>(std::min<int64_t>(kTokenBlock, p_.N - first_));
    tiles_ = ceil_div(tokens_, kLanes);
    std::fill_n(static_cast<float*>(mask_), tokens_, 0.f);
    std::fill(mask_ + tokens_, mask_ + tiles_ * kLanes, -__builtin_inff());
    if (!p_.excluded) return;
    for (int t = 0; t < tokens_; ++t)
      if (is_excluded_[first_ + t]) mask_[t] = -__builtin_inff();
  }

  void begin_image(int64_t image) {
    const bool same_queries = image_ >= 0 && p_.shared;
    image_ = image;
    if (!same_queries) {
      gather(p_.query, p_.d, queries_, key_words_);
      if (kPairs && is_backward()) gather_pairs(p_.query, p_.d, query_rows_, key_words_);
    }
    if (p_.excluded) {
      std::fill_n(static_cast<char*>(is_excluded_), p_.N, 0);
      const int64_t* exclude = p_.exclude + image * p_.excluded;
      for (int64_t i = 0; i < p_.excluded; ++i) is_excluded_[exclude[i]] = 1;
    }
    if (is_backward()) gather_grads();
  }

  // Queries, or gradients of the output, of the image: [head][query][word].
  void gather(const AttentionTokens& tokens, int e, float* to, int64_t words) {
    for (int head = 0; head < p_.h; ++head)
      for (int g = 0; g < p_.G; ++g, to += words)
        for (int word = 0; word < words; word += kLanes)
          store(to + word, Arith::load_words(row(tokens, g, head), word, e));
  }

  // The same in words of two queries: [head][pair of queries][channel].
  void gather_pairs(const AttentionTokens& tokens, int e, float* to, int64_t words) {
    if constexpr (kPairs)
      for (int head = 0; head < p_.h; ++head)
        for (int g = 0; g < p_.G; g += 2)
          for (int word = 0; word < words; word += kLanes, to += 2 * kLanes) {
            const F low = Arith::load_words(row(tokens, g, head), word, e);
            const bool has_next = g + 1 < p_.G;
            const F high = has_next ? Arith::load_words(row(tokens, g + 1, head), word, e) : zero();
            F first, second;
            Arith::interleave(low, high, first, second);
            store(to, first);
            store(to + kLanes, second);
          }
  }

  // With D = <grad_out, out> and the log-sum-exp (base 2) of every head and query.
  void gather_grads() {
    gather(p_.grad_out, p_.dv, grads_, value_words_);
    gather_pairs(p_.grad_out, p_.dv, grad_rows_, value_words_);
    const float* lse = static_cast<const float*>(p_.lse) + image_ * rows_;
    for (int head = 0; head < p_.h; ++head)
      for (int g = 0; g < p_.G; ++g) {
        const T* out = static_cast<const T*>(p_.out) + ((image_ * p_.G + g) * p_.h + head) * p_.dv;
        const T* grad = row(p_.grad_out, g, head);
        F delta = zero();
        for (int c = 0; c < p_.dv; c += kLanes)
          delta = fma(FloatArith::load_words(grad, c, p_.dv), FloatArith::load_words(out, c, p_.dv),
                      delta);
        delta_[head * p_.G + g] = sum(delta);
        lse_[head * p_.G + g] = lse[head * p_.G + g] * kLog2E;
      }
  }

  void begin_tile(int tile) {
    tile_ = tile;
    count_ = std::min(kLanes, tokens_ - tile * kLanes);
    if (count_ == kLanes) return;
    fill_up(p_.k, p_.d, last_keys_);
    if (!p_.values_are_keys) fill_up(p_.v, p_.dv, last_values_);
  }

  // A tile within which the image ends, as [token][head][channel]; its last token stands for the
  // missing ones, whose weights are zero.
  void fill_up(const AttentionTokens& tokens, int e, T* to) const {
    for (int t = 0; t < kLanes; ++t)
      for (int head = 0; head < p_.h; ++head, to += e)
        std::copy_n(row(tokens, first_ + tile_ * kLanes + std::min(t, count_ - 1), head), e, to);
  }

  const T* row(const AttentionTokens& tokens, int64_t token, int head) const {
    return static_cast<const T*>(tokens.data) + image_ * tokens.stride[0] +
           token * tokens.stride[1] + head * tokens.stride[2];
  }
  Rows rows(const AttentionTokens& tokens, int e, const T* filled_up, int head) const {
    if (count_ < kLanes) return {filled_up + head * e, static_cast<int64_t>(p_.h) * e, e};
    return {row(tokens, first_ + tile_ * kLanes, head), tokens.stride[1], e};
  }
  Rows keys(int head) const { return rows(p_.k, p_.d, last_keys_, head); }
  Rows values(int head) const {
    return p_.values_are_keys ? keys(head) : rows(p_.v, p_.dv, last_values_, head);
  }

  // Fetches the rows of a head some tiles ahead, unless the image ends before. Rows shorter than a
  // line share it with the head before. Inlined: g++ drops calls of what does nothing but prefetch.
  __attribute__((always_inline)) void prefetch(const AttentionTokens& tokens, int e,
                                               int head) const {
    const int64_t first = first_ + (tile_ + kTilesAhead) * kLanes;
    const int64_t step = tokens.stride[1] * sizeof(T);
    const uintptr_t bytes = e * sizeof(T);
    const char* at = reinterpret_cast<const char*>(row(tokens, first, head));
    const bool is_fetched = head > 0 && reinterpret_cast<uintptr_t>(at) % 64 >= bytes;
    if (is_fetched || first + kLanes > p_.N) return;
#pragma GCC unroll 16
    for (int t = 0; t < kLanes; ++t)
      for (uintptr_t line = 0; line < bytes; line += 64)
        __builtin_prefetch(at + t * step + line, 0, 3);
  }

  WordTable queries(int head) const { return {queries_ + head * p_.G * key_words_, key_words_}; }
  WordTable grads(int head) const { return {grads_ + head * p_.G * value_words_, value_words_}; }
  // In words along queries, as expand_queries takes them.
  WordTable query_rows(int head) const {
    if constexpr (!kPairs) return queries(head);
    return {query_rows_ + head * steps_ * 2 * key_words_, 2 * key_words_};
  }
  WordTable grad_rows(int head) const {
    if constexpr (!kPairs) return grads(head);
    return {grad_rows_ + head * steps_ * 2 * value_words_, 2 * value_words_};
  }
  WordTable token_words(WordTable weights) const {
    return pair_tokens<Arith>({token_words_, kLanes}, weights, p_.G);
  }
  WordTable weights(int head = 0) const { return {weights_ + head * p_.G * kLanes, kLanes}; }
  WordTable sums(int head, int64_t step) const { return {sums_ + head * p_.G * step, step}; }
  void clear_sums(int64_t step) { std::fill_n(static_cast<float*>(sums_), rows_ * step, 0.f); }

  // All heads' scores before the first weight, so that the steps of one head wait beside others'.
  void forward_tile() {
    for (int head = 0; head < p_.h; ++head) {
      prefetch(p_.k, p_.d, head);
      tile_scores(weights(head), queries(head), p_.G, keys(head));
    }
    weigh(load(mask_ + tile_ * kLanes));
    for (int head = 0; head < p_.h; ++head) {
      if (!p_.values_are_keys) prefetch(p_.v, p_.dv, head);
      add_tokens(sums(head, value_floats_), token_words(weights(head)), p_.G, values(head));
    }
  }

  // Scores of a tile to weights, in place.
  void weigh(F mask) {
    F excess = broadcast(-__builtin_inff());
    for (int row = 0; row < rows_; ++row) {
      const F x = fma(load(weights()[row]), broadcast(scale_log2_), mask);
      store(weights()[row], x);
      excess = max(x - broadcast(limits_[row]), excess);
    }
    if (largest(excess) > 0)
      for (int row = 0; row < rows_; ++row) raise(row, largest(load(weights()[row])));
    for (int row = 0; row < rows_; ++row) {
      const F x = Arith::exp(load(weights()[row]) - broadcast(bases_[row]));
      store(weights()[row], x);
      float* total = totals_ + row * kLanes;
      store(total, load(total) + x);
    }
  }

  // Makes `top` the base of a row, should it lie above the limit.
  void raise(int row, float top) {
    if (!(top > limits_[row])) return;
    const F factor = exp2(broadcast(bases_[row] - top));
    float* total = totals_ + row * kLanes;
    if (limits_[row] != -__builtin_inff()) {
      store(total, load(total) * factor);
      for (float* x = sums_ + row * value_floats_; x < sums_ + (row + 1) * value_floats_;
           x += kLanes)
        store(x, load(x) * factor);
    }
    bases_[row] = top;
    limits_[row] = top + kSlack;
  }

  void backward_tile(int head) {
    const WordTable score_grads{score_grads_, kLanes};
    const int first = head * p_.G;
    prefetch(p_.k, p_.d, head);
    if (!p_.values_are_keys) prefetch(p_.v, p_.dv, head);
    tile_scores(weights(), queries(head), p_.G, keys(head));
    const F mask = load(mask_ + tile_ * kLanes);
    for (int g = 0; g < p_.G; ++g) {
      const F x = fma(load(weights()[g]), broadcast(scale_log2_), mask);
      store(weights()[g], Arith::exp(x - broadcast(lse_[first + g])));
    }
    const Weighted from_weights{pair_queries<Arith>({query_words_, kLanes}, weights(), p_.G),
                                grad_rows(head)};
    if (p_.grad_v)
      expand_queries<Arith>(grad_v_ + head * p_.dv, p_.h * p_.dv, {from_weights}, steps_, count_,
                            p_.dv);
    if (!p_.grad_k && !p_.grad_query) return;
    tile_scores(score_grads, grads(head), p_.G, values(head));
    for (int g = 0; g < p_.G; ++g) {
      const F x = load(weights()[g]) * (load(score_grads[g]) - broadcast(delta_[first + g]));
      store(score_grads[g], x * broadcast(scale_));
    }
    const Weighted from_scores{
        pair_queries<Arith>({query_words_ + steps_ * kLanes, kLanes}, score_grads, p_.G),
        query_rows(head)};
    T* grad_k = grad_k_ + head * p_.d;
    if (p_.grad_k && p_.values_are_keys)
      expand_queries<Arith>(grad_k, p_.h * p_.d, {from_scores, from_weights}, steps_, count_, p_.d);
    else if (p_.grad_k)
      expand_queries<Arith>(grad_k, p_.h * p_.d, {from_scores}, steps_, count_, p_.d);
    if (p_.grad_query)
      add_tokens(sums(head, key_floats_), token_words(score_grads), p_.G, keys(head));
  }

  // A tile of gradients to its place in a contiguous (B, N, h, e), unless not asked for.
  void send(void* grad, const T* tile_grads, int e) const {
    if (!grad) return;
    const int64_t token = p_.h * static_cast<int64_t>(e), first = first_ + tile_ * kLanes;
    copy_streaming(static_cast<T*>(grad) + (image_ * p_.N + first) * token, tile_grads,
                   count_ * token * sizeof(T));
  }

  const SingleQueryParams& p_;
  const int rows_;   // pairs of a head and a query
  const int steps_;  // words along the queries
  const int64_t key_words_, value_words_, key_floats_, value_floats_;
  const float scale_, scale_log2_;
  AlignedBuffer<char> is_excluded_;              // of every token of the image
  AlignedBuffer<float> mask_;                    // of each token of the block
  AlignedBuffer<T> last_keys_, last_values_;     // filled up: [token][head][channel]
  AlignedBuffer<float> queries_;                 // [head][query][word]
  AlignedBuffer<float> weights_;                 // of a tile, scores at first: [query][token]
  AlignedBuffer<float> token_words_;             // in pairs along tokens: [query][pair]
  AlignedBuffer<float> sums_;                    // of values or keys: [head][query][channel]
  AlignedBuffer<float> totals_;                  // of weights: [head][query][lane]
  AlignedBuffer<float> bases_, limits_;          // of scores (base 2): [head][query]
  AlignedBuffer<float> grads_;                   // gradients of the output: [head][query][word]
  AlignedBuffer<float> query_rows_, grad_rows_;  // in pairs: [head][pair of queries][channel]
  AlignedBuffer<float> query_words_;             // weights, score gradients in pairs: [pair][token]
  AlignedBuffer<float> lse_, delta_;
  AlignedBuffer<float> score_grads_;  // scaled gradients of the scores of one tile
  AlignedBuffer<T> grad_k_, grad_v_;  // of one tile: [token][head][channel]

  int64_t image_ = -1, first_ = 0;
  int tokens_ = 0, tiles_ = 0;  // of the block
  int tile_ = 0, count_ = 0;    // the tile of the block, and its tokens
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
