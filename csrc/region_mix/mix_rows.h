// region_mix on the CPU: what its forward and backward have in common.
#pragma once

#include "../common/aligned_buffer.h"
#include "../common/stencil/region_rows.h"
#include "../common/stencil/walk_map.h"
#include "region_mix.h"

namespace hybrid {
namespace HYBRID_ISA {

// For maps of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void region_mix_forward(const RegionMixParams& p, int64_t begin, int64_t end);
template <class T>
void region_mix_backward(const RegionMixParams& p, int64_t begin, int64_t end);

namespace {

inline RegionRows rows_of(const RegionMixParams& p) {
  return RegionRows(p.B, p.rows, p.region * p.W);
}

// The partial sums of the taps and of the bias.
template <class T>
PartSums<T> sums_of(const RegionMixParams& p) {
  const int64_t taps = p.grad_weight ? p.side * p.side : 0;
  return rows_of(p).sums<T>(taps + (p.grad_bias ? 1 : 0), p.C, p.workspace);
}

// N neighbouring rows of z = x + g for a vector of channels, as a source of a walk.
template <class T, int N, class Lanes>
class RowsOfZ {
  using V = typename Arithmetic<T>::Vector;

 public:
  // Rows from `first` on, columns from `column` on.
  RowsOfZ(const RegionMixParams& p, int64_t image, int64_t first, int64_t column, int64_t c,
          Lanes lanes)
      : lanes_(lanes), W_(p.W), region_(p.region), x_step_(p.x.stride[2]), g_step_(p.g.stride[2]) {
#pragma GCC unroll 10
    for (int e = 0; e < N; ++e) {
      const int64_t i = first + e;
      const bool exists = i >= 0 && i < p.H;
      x_[e] = exists ? p.x.row<T>(image, i, c) : nullptr;
      g_[e] = exists ? p.g.row<T>(image, i / p.region, c) : nullptr;
    }
    const int64_t q = larger(column, 0) / p.region;
    token_at_ = q * g_step_;
    next_ = q * region_;
  }

  // Keeps the tokens of column j at hand.
  __attribute__((always_inline)) void advance(int64_t j) {
    if (j < next_ || j >= W_) return;
#pragma GCC unroll 10
    for (int e = 0; e < N; ++e)
      if (g_[e]) token_[e] = load_lanes(g_[e] + token_at_, lanes_);
    token_at_ += g_step_;
    next_ += region_;
  }

  __attribute__((always_inline)) bool has(int e) const { return x_[e]; }
  __attribute__((always_inline)) V at(int e, int64_t j) const {
    return load_lanes(x_[e] + j * x_step_, lanes_) + token_[e];
  }
  __attribute__((always_inline)) void meet(int, int64_t, V) const {}

 private:
  const Lanes lanes_;
  const int64_t W_, region_, x_step_, g_step_;
  const T *x_[N], *g_[N];
  V token_[N] = {};
  int64_t token_at_, next_;  // offset of the next token, and the column where its region begins
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
