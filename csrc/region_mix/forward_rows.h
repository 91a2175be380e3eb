// region_mix forward on the CPU: the stencil walks over z, which is never stored.
#pragma once

#include "mix_rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// R rows of outputs from row i on, of which the first `skipped` belong to another walk.
template <class T, int K, int R>
void forward_walk(const RegionMixParams& p, int64_t image, int64_t i, int64_t skipped,
                  bool streams) {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  constexpr int64_t kBytes = R * Arithmetic<T>::kCount * sizeof(T);
  const int64_t token_bytes = kBytes / (p.region * p.region), next = i + R + K / 2;
  Fetch x_ahead = Fetch::rows<T>(p.x, image, next, p.W, p.C);
  Fetch g_ahead = Fetch::rows<T>(p.g, image, next / p.region, p.columns, p.C);
  Fetch y_ahead = Fetch::rows<T>(p.y, image, i + R, streams);
  const int64_t W = p.W, C = p.C;
  for_each_tile(W, [&](int64_t first, int64_t last) {
    for_each_vector<T>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      V taps[K][K];
      load_taps<K>(static_cast<const Scalar*>(p.weight) + c, C, lanes, false, taps);
      const V start = p.bias ? load_lanes(static_cast<const Scalar*>(p.bias) + c, lanes) : V{};
      T* y = p.y.row<T>(image, i, c);
      Fetch x = x_ahead, g = g_ahead, to_y = y_ahead;  // in registers
      RowsOfZ<T, R + K - 1, decltype(lanes)> z(p, image, i - K / 2, first - K / 2, c, lanes);
      walk_rows<K, R>(taps, first, last, W, z,
                      [=, &x, &g, &to_y](int64_t j, const V(&sums)[R])
                          __attribute__((always_inline)) {
                            x.next(kBytes);
                            g.next(token_bytes);
                            to_y.next(kBytes);
                            T* to = y + j * C;
#pragma GCC unroll 4
                            for (int r = 0; r < R; ++r, to += W * C)
                              if (r >= skipped) stream_lanes(to, sums[r] + start, lanes, streams);
                          });
      x_ahead = x;
      g_ahead = g;
      y_ahead = to_y;
    });
  });
}

template <class T, int K>
void forward_walks(const RegionMixParams& p, int64_t begin, int64_t end) {
  constexpr int kRows = rows_at_once(K);
  const bool streams = streams_vectors<T>(p, p.y);
  const int64_t walks = walks_per_image(p);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t image = index / walks, walk = index % walks;
    if (p.H < kRows) {
      forward_walk<T, K, 1>(p, image, walk, 0, streams);
    } else {  // the last one begins early enough to have all its rows
      const int64_t i = smaller(walk * kRows, p.H - kRows);
      forward_walk<T, K, kRows>(p, image, i, walk * kRows - i, streams);
    }
  }
  stream_fence();
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
