// The arithmetic of one tile: kLanes tokens of one head against a few queries, all in float32.
//
// Products that sum over channels (scores) have the tokens in the lanes: the tile is transposed in
// registers on its way in. Products that sum over tokens or over queries have the channels there.
#pragma once

#include <algorithm>

#include "../common/attention/cpu_products.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// What one lane of a product takes: a float, or, of tokens in bfloat16, a pair where there is an
// instruction for it. Sums are float32; the pairs of tokens and queries are exact, weights rounded.
template <class T>
struct ArithOf {
  using type = FloatArith;
};
#if defined(__AVX512BF16__)
template <>
struct ArithOf<bf16> {
  using type = Bf16Arith;
};
#endif
template <class T>
using TileArith = typename ArithOf<T>::type;

// Rows of e elements of neighbouring tokens, of which `count` exist.
template <class T>
struct TileRows {
  using Arith = TileArith<T>;
  const T* first;
  int64_t step;
  int count, e;

  const T* operator[](int token) const { return first + token * step; }
  // From word `word` on; zeros behind the end, unless that is known to be far.
  template <bool kFar = false>
  F words(int token, int word) const {
    if constexpr (kFar) return Arith::load_vector((*this)[token], word);
    return Arith::load_words((*this)[token], word, e);
  }
  bool is_whole(int word) const {
    return count == kLanes && e - word * Arith::kPerWord >= kLanes * Arith::kPerWord;
  }
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

// scores[g][t] (+)= the product of words [word, word + kSteps) of query g and token t.
template <class Arith, int kSteps>
inline void add_scores(WordTable scores, WordTable queries, int number, const F (&columns)[kLanes],
                       int word) {
  for_few(number, [&](int g, auto block) __attribute__((always_inline)) {
    constexpr int R = decltype(block)::value;
    F sums[R][kChains<R>] = {};
#pragma GCC unroll 16
    for (int i = 0; i < kSteps; ++i)
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

// scores[g][t] = <queries[g], tokens[t]>; queries are padded with zeros to whole vectors of words.
template <class T>
inline void tile_scores(WordTable scores, WordTable queries, int number,
                        const TileRows<T>& tokens) {
  using Arith = TileArith<T>;
  const int words = ceil_div<int>(tokens.e, Arith::kPerWord);
  for (int word = 0; word < words; word += kLanes) {
    F columns[kLanes];
    if (tokens.is_whole(word)) {
#pragma GCC unroll 16
      for (int t = 0; t < kLanes; ++t) columns[t] = tokens.template words<true>(t, word);
    } else {
      for (int t = 0; t < kLanes; ++t)
        columns[t] = tokens.words(std::min(t, tokens.count - 1), word);
    }
    transpose(columns);
    if (2 * (words - word) <= kLanes)
      add_scores<Arith, kLanes / 2>(scores, queries, number, columns, word);
    else
      add_scores<Arith, kLanes>(scores, queries, number, columns, word);
  }
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
template <bool kWhole, int C, class T>
inline __attribute__((always_inline)) void load_channels(F (&rows)[C], const TileRows<T>& tokens,
                                                         int step, int channel) {
  using Arith = TileArith<T>;
  if constexpr (Arith::kPerWord == 1) {
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) rows[j] = tokens.template words<kWhole>(step, channel + j * kLanes);
  } else {
    const int t = 2 * step, word = channel / 2;
    F vectors[2];
    constexpr bool kFar = kWhole && C == 2;
    const bool has_next = kWhole || t + 1 < tokens.count;
    Arith::interleave(tokens.template words<kFar>(t, word),
                      has_next ? tokens.template words<kFar>(t + 1, word) : zero(), vectors[0],
                      vectors[1]);
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) rows[j] = vectors[j];
  }
}

template <int C, class T>
inline void add_token_channels(WordTable sums, WordTable weights, int number,
                               const TileRows<T>& tokens, int channel) {
  using Arith = TileArith<T>;
  constexpr int kSteps = kLanes / Arith::kPerWord;
  const int steps = ceil_div<int>(tokens.count, Arith::kPerWord);
  const bool whole = tokens.count == kLanes && tokens.e - channel >= C * kLanes;
  for_few(number, [&](int g, auto block) __attribute__((always_inline)) {
    constexpr int R = decltype(block)::value;
    F acc[R][C][kChains<R>] = {};
    const auto add = [&](int step, auto is_whole) __attribute__((always_inline)) {
      F rows[C];
      load_channels<decltype(is_whole)::value>(rows, tokens, step, channel);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < C; ++j) {
          F& sum = acc[r][j][step % kChains<R>];
          sum = Arith::dot(sum, broadcast(weights[g + r][step]), rows[j]);
        }
    };
    if (whole) {
#pragma GCC unroll 16
      for (int step = 0; step < kSteps; ++step) add(step, std::true_type{});
    } else {
      for (int step = 0; step < steps; ++step) add(step, std::false_type{});
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

// sums[g] += sum over t of weights[g][t] * tokens[t]; weights as pair_tokens gives them, sums are
// whole vectors.
template <class T>
inline void add_tokens(WordTable sums, WordTable weights, int number, const TileRows<T>& tokens) {
  int channel = 0;
  for (; tokens.e - channel > kLanes; channel += 2 * kLanes)
    add_token_channels<2>(sums, weights, number, tokens, channel);
  if (channel < tokens.e) add_token_channels<1>(sums, weights, number, tokens, channel);
}

// Words along queries: weights [step][token], as pair_queries gives them, and what they weigh,
// [step][channel].
struct Weighted {
  WordTable weights, rows;
};

// to[t] = sum over the terms and steps of weights[step][t] * rows[step], for `count` tokens.
template <class T, int kTerms>
inline void expand_queries(T* to, int64_t stride, const Weighted (&terms)[kTerms], int steps,
                           int count, int e) {
  for (int channel = 0; channel < e; channel += kLanes)
    for_few(count, [&](int t, auto block) __attribute__((always_inline)) {
      constexpr int R = decltype(block)::value;
      F sums[R] = {};
#pragma GCC unroll 2
      for (int i = 0; i < kTerms; ++i)
        for (int step = 0; step < steps; ++step) {
          const F row = load(terms[i].rows[step] + channel);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r)
            sums[r] = TileArith<T>::dot(sums[r], broadcast(terms[i].weights[step][t + r]), row);
        }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        T* place = to + (t + r) * stride + channel;
        e - channel >= kLanes ? store(place, sums[r]) : store_first(place, sums[r], e - channel);
      }
    });
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
