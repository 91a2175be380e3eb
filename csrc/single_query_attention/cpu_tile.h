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

// Rows of e elements of neighbouring tokens, of which `count` exist.
template <class T>
struct TileRows {
  const T* first;
  int64_t step;
  int count, e;

  const T* operator[](int token) const { return first + token * step; }
  F load(int token, int channel) const {
    return FloatArith::load_words((*this)[token], channel, e);
  }
  bool is_whole(int channel) const { return count == kLanes && e - channel >= kLanes; }
};

// Rows [query][...] of floats, `step` apart.
struct QueryRows {
  float* first;
  int64_t step;

  float* operator[](int query) const { return first + query * step; }
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

// scores[g][t] = <queries[g], tokens[t]>; queries are padded with zeros to whole vectors.
template <class T>
inline void tile_scores(QueryRows scores, QueryRows queries, int number,
                        const TileRows<T>& tokens) {
  for (int channel = 0; channel < tokens.e; channel += kLanes) {
    F columns[kLanes];
    if (tokens.is_whole(channel)) {
#pragma GCC unroll 16
      for (int t = 0; t < kLanes; ++t) columns[t] = load(tokens[t] + channel);
    } else {
      for (int t = 0; t < kLanes; ++t)
        columns[t] = tokens.load(std::min(t, tokens.count - 1), channel);
    }
    transpose(columns);
    for_few(number, [&](int g, auto block) __attribute__((always_inline)) {
      constexpr int R = decltype(block)::value;
      F sums[R][kChains<R>] = {};
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; ++c)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          F& sum = sums[r][c % kChains<R>];
          sum = fma(columns[c], broadcast(queries[g + r][channel + c]), sum);
        }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F sum = chain_sum(sums[r]);
        store(scores[g + r], channel == 0 ? sum : load(scores[g + r]) + sum);
      }
    });
  }
}

// sums[g] += sum over t of weights[g][t] * tokens[t]; sums are whole vectors.
template <class T>
inline void add_tokens(QueryRows sums, QueryRows weights, int number, const TileRows<T>& tokens) {
  for (int channel = 0; channel < tokens.e; channel += kLanes)
    for_few(number, [&](int g, auto block) __attribute__((always_inline)) {
      constexpr int R = decltype(block)::value;
      F acc[R][kChains<R>] = {};
      const auto add = [&](int t, F row) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          F& sum = acc[r][t % kChains<R>];
          sum = fma(row, broadcast(weights[g + r][t]), sum);
        }
      };
      if (tokens.is_whole(channel)) {
#pragma GCC unroll 16
        for (int t = 0; t < kLanes; ++t) add(t, load(tokens[t] + channel));
      } else {
        for (int t = 0; t < tokens.count; ++t) add(t, tokens.load(t, channel));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        float* sum = sums[g + r] + channel;
        store(sum, load(sum) + chain_sum(acc[r]));
      }
    });
}

// Weights [query][token] and what they weigh [query][channel].
struct Weighted {
  QueryRows weights, rows;
};

// to[t] = sum over the terms and over g of weights[g][t] * rows[g], for `count` tokens.
template <class T, int kTerms>
inline void expand_queries(T* to, int64_t step, const Weighted (&terms)[kTerms], int number,
                           int count, int e) {
  for (int channel = 0; channel < e; channel += kLanes)
    for_few(count, [&](int t, auto block) __attribute__((always_inline)) {
      constexpr int R = decltype(block)::value;
      F sums[R] = {};
#pragma GCC unroll 2
      for (int i = 0; i < kTerms; ++i)
        for (int g = 0; g < number; ++g) {
          const F row = load(terms[i].rows[g] + channel);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r)
            sums[r] = fma(row, broadcast(terms[i].weights[g][t + r]), sums[r]);
        }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        T* place = to + (t + r) * step + channel;
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
