// The arithmetic of one tile: kLanes tokens of one head against a few queries, summed in float32.
//
// Sums over channels (scores) end with the tokens in the lanes: many queries share a transposition
// of the tile in registers, few queries take horizontal sums. Sums over tokens or over queries have
// the channels there. An Arith says what a word is: a float, or a pair of bf16, whose products are
// exact; weights are then rounded to bf16.
#pragma once

#include <algorithm>

#include "../common/attention/cpu_products.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// The rows of kLanes tokens, of e elements each, `step` elements apart.
template <class T, class ArithT>
struct TileRows {
  using Arith = ArithT;
  const T* first;
  int64_t step;
  int e;

  // From word `word` on; zeros behind the end, unless that is known to be far.
  template <bool kFar>
  F words(int token, int word) const {
    const T* row = first + token * step;
    if constexpr (kFar) return Arith::load_vector(row, word);
    return Arith::load_words(row, word, e);
  }
  int vectors() const { return ceil_div(e, kLanes * Arith::kPerWord); }
  bool is_far(int word) const { return e - word * Arith::kPerWord >= kLanes * Arith::kPerWord; }
};

// Rows of words, `step` apart.
struct WordTable {
  float* first;
  int64_t step;

  float* operator[](int row) const { return first + row * step; }
};

// call(first, Int<R>) for blocks of 8, 4, 2 and 1 of a few rows.
template <class Call>
inline __attribute__((always_inline)) void for_few(int rows, Call call) {
  int first = 0;
  for (; first + 8 <= rows; first += 8) call(first, Int<8>{});
  if (rows & 4) call(first, Int<4>{}), first += 4;
  if (rows & 2) call(first, Int<2>{}), first += 2;
  if (rows & 1) call(first, Int<1>{});
}

// Sums that run beside each other, so that multiply-adds need not wait for the one before.
template <int R>
constexpr int kChains = R == 1   ? 4
                        : R == 2 ? 2
                                 : 1;

template <int N>
inline __attribute__((always_inline)) F chain_sum(const F (&chains)[N]) {
  F total = chains[0];
#pragma GCC unroll 4
  for (int i = 1; i < N; ++i) total = total + chains[i];
  return total;
}

// The vectors of words from `word` on of all tokens.
template <bool kFar, class Rows>
inline __attribute__((always_inline)) void load_tile(F (&vectors)[kLanes], const Rows& tokens,
                                                     int word) {
#pragma GCC unroll 16
  for (int t = 0; t < kLanes; ++t) vectors[t] = tokens.template words<kFar>(t, word);
}

// scores[g][t] (+)= the product of words [word, word + kLanes) of query g and token t.
template <class Arith>
inline __attribute__((always_inline)) void add_scores(WordTable scores, WordTable queries,
                                                      int number, const F (&columns)[kLanes],
                                                      int word) {
  for_few(number, [&](int g, auto block) __attribute__((always_inline)) {
    constexpr int R = decltype(block)::value;
    F sums[R][kChains<R>] = {};
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        F& sum = sums[r][i % kChains<R>];
        sum = Arith::dot(sum, broadcast(queries[g + r][word + i]), columns[i]);
      }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F sum = chain_sum(sums[r]);
      store(scores[g + r], word == 0 ? sum : load(scores[g + r]) + sum);
    }
  });
}

// For many queries: one transposition for each vector of words.
template <class Rows>
inline void scores_by_columns(WordTable scores, WordTable queries, int number, const Rows& tokens) {
  for (int i = 0; i < tokens.vectors(); ++i) {
    const int word = i * kLanes;
    F columns[kLanes];
    tokens.is_far(word) ? load_tile<true>(columns, tokens, word)
                        : load_tile<false>(columns, tokens, word);
    transpose(columns);
    add_scores<typename Rows::Arith>(scores, queries, number, columns, word);
  }
}

// Scores of R queries from g on and kLanes / R tokens from `token` on, query by query.
template <int R, class Rows>
inline __attribute__((always_inline)) F block_scores(WordTable queries, int g, const Rows& tokens,
                                                     int token) {
  constexpr int kTokens = kLanes / R;
  F products[kLanes] = {};
  for (int i = 0; i < tokens.vectors(); ++i) {
    const int word = i * kLanes;
    const auto add = [&](auto is_far) __attribute__((always_inline)) {
      F rows[kTokens];
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t)
        rows[t] = tokens.template words<decltype(is_far)::value>(token + t, word);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const F query = load(queries[g + r] + word);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          F& sum = products[r * kTokens + t];
          sum = Rows::Arith::dot(sum, query, rows[t]);
        }
      }
    };
    tokens.is_far(word) ? add(std::true_type{}) : add(std::false_type{});
  }
  return sums(products);
}

// For few queries: horizontal sums, of as many queries at once as there are quads of lanes.
template <class Rows>
inline void scores_by_sums(WordTable scores, WordTable queries, int number, const Rows& tokens) {
  constexpr int R = kLanes / 4;
  int g = 0;
  for (; g + R <= number; g += R) {
    F quads[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) quads[i] = block_scores<R>(queries, g, tokens, 4 * i);
    transpose_quads(quads);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) store(scores[g + r], quads[r]);
  }
  for (; g < number; ++g) store(scores[g], block_scores<1>(queries, g, tokens, 0));
}

// scores[g][t] = <queries[g], tokens[t]>; queries are padded with zeros to whole vectors of words.
// A transposition costs about what the sums of two queries do.
template <class Rows>
inline void tile_scores(WordTable scores, WordTable queries, int number, const Rows& tokens) {
  number <= 2 * tokens.vectors() ? scores_by_sums(scores, queries, number, tokens)
                                 : scores_by_columns(scores, queries, number, tokens);
}

// weights [query][token] -> words of neighbouring queries, [pair of queries][token].
template <class Arith>
inline WordTable pair_queries(WordTable words, WordTable weights, int number) {
  if constexpr (Arith::kPerWord == 1) {
    return weights;
  } else {
    for (int g = 0; g < number; g += 2)
      store(words[g / 2],
            Arith::pack(load(weights[g]), g + 1 < number ? load(weights[g + 1]) : zero()));
    return words;
  }
}

// weights [query][token] -> words of neighbouring tokens, [query][pair of tokens].
template <class Arith>
inline WordTable pair_tokens(WordTable words, WordTable weights, int number) {
  if constexpr (Arith::kPerWord == 1) {
    return weights;
  } else {
    for (int g = 0; g < number; ++g)
      store(reinterpret_cast<typename Arith::Element*>(words[g]), load(weights[g]));
    return words;
  }
}

// C vectors of channels, from `channel` on, of the tokens that make word `step`.
template <bool kFar, int C, class Rows>
inline __attribute__((always_inline)) void load_channels(F (&rows)[C], const Rows& tokens, int step,
                                                         int channel) {
  using Arith = typename Rows::Arith;
  if constexpr (Arith::kPerWord == 1) {
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) rows[j] = tokens.template words<kFar>(step, channel + j * kLanes);
  } else {
    constexpr bool kWhole = kFar && C == 2;
    F vectors[2];
    Arith::interleave(tokens.template words<kWhole>(2 * step, channel / 2),
                      tokens.template words<kWhole>(2 * step + 1, channel / 2), vectors[0],
                      vectors[1]);
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) rows[j] = vectors[j];
  }
}

template <bool kFar, int C, class Rows>
inline void add_channels(WordTable sums, WordTable weights, int number, const Rows& tokens,
                         int channel) {
  using Arith = typename Rows::Arith;
  for_few(number, [&](int g, auto block) __attribute__((always_inline)) {
    constexpr int R = decltype(block)::value;
    F acc[R][C][kChains<R>] = {};
#pragma GCC unroll 16
    for (int step = 0; step < kLanes / Arith::kPerWord; ++step) {
      F rows[C];
      load_channels<kFar>(rows, tokens, step, channel);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F weight = broadcast(weights[g + r][step]);
#pragma GCC unroll 2
        for (int j = 0; j < C; ++j) {
          F& sum = acc[r][j][step % kChains<R>];
          sum = Arith::dot(sum, weight, rows[j]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) {
        float* sum = sums[g + r] + channel + j * kLanes;
        store(sum, load(sum) + chain_sum(acc[r][j]));
      }
  });
}

// Vectors of channels to take at once: of 8 queries or tokens, the registers hold as many sums.
constexpr int kWide = kLanes == 16 ? 2 : 1;

// sums[g] += sum over t of weights[g][t] * tokens[t]; weights as pair_tokens gives them, sums are
// whole vectors.
template <class Rows>
inline void add_tokens(WordTable sums, WordTable weights, int number, const Rows& tokens) {
  int channel = 0;
  for (; tokens.e - channel >= kWide * kLanes; channel += kWide * kLanes)
    add_channels<true, kWide>(sums, weights, number, tokens, channel);
  if (tokens.e - channel >= kLanes) {
    add_channels<true, 1>(sums, weights, number, tokens, channel);
    channel += kLanes;
  }
  if (channel < tokens.e) add_channels<false, 1>(sums, weights, number, tokens, channel);
}

// Words along queries: weights [step][token], as pair_queries gives them, and what they weigh,
// [step][channel].
struct Weighted {
  WordTable weights, rows;
};

// C vectors of channels, from `channel` on, of what expand_queries computes.
template <class Arith, int C, class T, int kTerms>
inline __attribute__((always_inline)) void expand_channels(T* to, int64_t stride,
                                                           const Weighted (&terms)[kTerms],
                                                           int steps, int count, int e,
                                                           int channel) {
  for_few(count, [&](int t, auto block) __attribute__((always_inline)) {
    constexpr int R = decltype(block)::value;
    F sums[R][C] = {};
#pragma GCC unroll 2
    for (int i = 0; i < kTerms; ++i)
      for (int step = 0; step < steps; ++step) {
        F rows[C];
#pragma GCC unroll 2
        for (int j = 0; j < C; ++j) rows[j] = load(terms[i].rows[step] + channel + j * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const F weight = broadcast(terms[i].weights[step][t + r]);
#pragma GCC unroll 2
          for (int j = 0; j < C; ++j) sums[r][j] = Arith::dot(sums[r][j], weight, rows[j]);
        }
      }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) {
        T* place = to + (t + r) * stride + channel + j * kLanes;
        const int left = e - channel - j * kLanes;
        left >= kLanes ? store(place, sums[r][j]) : store_first(place, sums[r][j], left);
      }
  });
}

// to[t] = sum over the terms and steps of weights[step][t] * rows[step], for `count` tokens.
template <class Arith, class T, int kTerms>
inline void expand_queries(T* to, int64_t stride, const Weighted (&terms)[kTerms], int steps,
                           int count, int e) {
  int channel = 0;
  for (; e - channel >= kWide * kLanes; channel += kWide * kLanes)
    expand_channels<Arith, kWide>(to, stride, terms, steps, count, e, channel);
  for (; channel < e; channel += kLanes)
    expand_channels<Arith, 1>(to, stride, terms, steps, count, e, channel);
}

// Copies what lies side by side, past the caches as far as it fills cache lines.
inline void copy_streaming(void* to, const void* from, int64_t bytes) {
  constexpr int64_t kStep = kLanes * sizeof(float);
  char* place = static_cast<char*>(to);
  const char* data = static_cast<const char*>(from);
  int64_t done = 0;
  if (reinterpret_cast<uintptr_t>(place) % 64 == 0)
    for (; done + 64 <= bytes; done += 64)
      for (int64_t i = done; i < done + 64; i += kStep)
        stream_one(reinterpret_cast<float*>(place + i),
                   load(reinterpret_cast<const float*>(data + i)));
  __builtin_memcpy(place + done, data + done, bytes - done);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
