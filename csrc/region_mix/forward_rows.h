// region_mix forward on the CPU: the stencil walks over z, which is never stored.
#pragma once

#include "mix_rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// R rows of outputs from row i on, of which the first `skipped` belong to another walk.
template <class T, int K, int R>
void forward_walk(const RegionMixParams& p, const WalkedStencil<T>& stencil, int64_t image,
                  int64_t i, int64_t skipped) {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  constexpr int64_t kBytes = R * Arithmetic<T>::kCount * sizeof(T);
  const int64_t next = i + R + K / 2;
  const Upcoming ahead{Fetch::rows<T>(p.x, image, next, p.W, p.C),
                       Fetch::rows<T>(p.g, image, next / p.region, p.columns, p.C),
                       kBytes / (p.region * p.region)};
  convolve_walk<T, K, R>(
      stencil, image, i, skipped, ahead,
      [&](int64_t column, int64_t c, auto lanes) __attribute__((always_inline)) {
        return RowsOfZ<T, R + K - 1, decltype(lanes)>(p, image, i - K / 2, column, c, lanes);
      },
      [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        const V bias = p.bias ? load_lanes(static_cast<const Scalar*>(p.bias) + c, lanes) : V{};
        return [=](V sum) __attribute__((always_inline)) { return sum + bias; };
      });
}

template <class T, int K>
void forward_walks(const RegionMixParams& p, int64_t begin, int64_t end) {
  using Scalar = typename Arithmetic<T>::Scalar;
  const WalkedStencil<T> stencil{static_cast<const Scalar*>(p.weight), p.y,
                                 streams_vectors<T>(p.y, p.B, p.H)};
  for_each_walk<K, 1>(p.H, begin, end, [&](auto rows, int64_t image, int64_t i, int64_t skipped) {
    forward_walk<T, K, rows>(p, stencil, image, i, skipped);
  });
}

template <class T>
void run_forward(const RegionMixParams& p, int64_t begin, int64_t end) {
  if (p.side == 1) forward_walks<T, 1>(p, begin, end);
  if (p.side == 3) forward_walks<T, 3>(p, begin, end);
  if (p.side == 5) forward_walks<T, 5>(p, begin, end);
  if (p.side == 7) forward_walks<T, 7>(p, begin, end);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
