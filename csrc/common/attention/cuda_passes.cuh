// What attention kernels that stream one side past the other have in common: which tiles they use,
// and what happens between the products.
#pragma once

#include "cuda_rows.cuh"

namespace hybrid {
namespace {

// 128 channels take smaller tiles where two accumulators or float32 rows would not fit.
template <class T, int E>
struct Tiles {
  using Forward = Mma<T, E, 64>;
  using Backward = Mma<T, E, E == 128 ? 32 : 64>;
};
template <int E>
struct Tiles<float, E> {
  using Forward = Fma<E, E == 128 ? 32 : 64>;
  using Backward = Forward;
};

// call(Tiles of T for the head width, rounded up to 32, 64 or 128)
template <class T, class Call>
int by_width(int width, const Call& call) {
  if (width <= 32) return call(Tiles<T, 32>());
  if (width <= 64) return call(Tiles<T, 64>());
  return call(Tiles<T, 128>());
}

template <class G>
constexpr int forward_shared_bytes() {
  return (G::R + 2 * G::C) * G::LD * static_cast<int>(sizeof(typename G::T)) + G::kScratch * 4;
}

// Products of queries and keys -> logits in base 2; -inf where there is no key.
template <class G>
__device__ __forceinline__ void to_logits(typename G::Scores& x, float scale, int rows, int keys) {
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    if (G::first_row(r) >= rows) break;
#pragma unroll
    for (int n = 0; n < G::kCols; ++n)
      x.at(r, n) = G::col(n) < keys ? x.at(r, n) * scale : -INFINITY;
  }
}

// A pass of the backward owns rows of one side and streams those of the other.
enum class Role { keys, queries };

template <class G, Role kRole>
struct Backward {
  using T = typename G::T;
  static constexpr bool kOwnsKeys = kRole == Role::keys;
  static constexpr int kQueries = kOwnsKeys ? G::C : G::R;  // rows of a query tile
  // One buffer holds out's rows until delta is known, then what multiply writes.
  static constexpr int kOutFloats = kQueries * G::LD * static_cast<int>(sizeof(T)) / 4;
  static constexpr int kTile = kOutFloats > G::kScratch ? kOutFloats : G::kScratch;
  static constexpr int kSharedBytes =
      2 * (G::R + G::C) * G::LD * static_cast<int>(sizeof(T)) + (kTile + 2 * kQueries) * 4;
};

// x: q k^T -> P. y: dout v^T -> dS. Both are zero where there is no key, and, by a log-sum-exp of
// +inf, where there is no query.
template <class G, bool kOwnsKeys>
__device__ __forceinline__ void probabilities(typename G::Scores& x, typename G::Scores& y,
                                              const QueryStats& stats, float scale, int keys) {
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
#pragma unroll
    for (int n = 0; n < G::kCols; ++n) {
      const int query = kOwnsKeys ? G::col(n) : G::row(r), key = kOwnsKeys ? G::row(r) : G::col(n);
      const float logit = key < keys ? x.at(r, n) * scale : -INFINITY;
      x.at(r, n) = exp2_approx(logit - stats.lse[query]);
      y.at(r, n) = x.at(r, n) * (y.at(r, n) - stats.delta[query]);
    }
  }
}

// factor * grad to the rows that this block owns, through `tile`.
template <class G, class Address>
__device__ __forceinline__ void store_grad(typename G::Out& grad, float factor, typename G::T* tile,
                                           bool vector, int rows, int e, const Address& address) {
  float factors[G::kRows];
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) factors[r] = factor;
  stage<G>(tile, grad, factors);
  store_own_rows<G>(tile, vector, rows, e, address);
}

}  // namespace
}  // namespace hybrid
