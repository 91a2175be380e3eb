// gated_fuse along a row of pixels: everything between the loads and the stores of one vector of
// channels stays in registers, and every map is read or written once.
#pragma once

#include "../common/arithmetic.h"
#include "gated_fuse.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// The first pixel of a row in some map, and the way to the next pixel.
template <class T>
struct Pixels {
  T* first;
  int64_t step;
};

// One row of all maps, and the parameters of its image. Null is what is not there or not asked for.
template <class T>
struct Row {
  using Scalar = typename Arithmetic<T>::Scalar;

  int64_t pixels, C;
  int n;
  bool residual;
  bool streams;                 // results are written past the caches
  const Scalar *weight, *bias;  // (n, C)
  const Scalar* scale;          // (n, scale_channels)
  int64_t scale_channels;       // C or 1
  Pixels<const T> x, m[kMaxBranches];
  Pixels<T> y;

  // Backward only.
  Pixels<const T> grad;
  Pixels<T> grad_x, grad_m[kMaxBranches];
  Scalar *sum_weight, *sum_bias, *sum_scale;  // (n, sum_stride): sums over pixels, to be added to
  int64_t sum_stride;                         // C rounded up to whole vectors
};

// For N branches; for any number of them if N is 0. Without a gate all branches weigh 1/n.
template <class T, int N, bool kGated>
class RowKernel {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  static constexpr int kMax = N ? N : kMaxBranches;

 public:
  explicit RowKernel(const Row<T>& row) : r_(row), n_(N ? N : row.n) {}

  void forward() const {
    for_each_vector([&](int64_t pixel, int64_t c, auto lanes) __attribute__((always_inline)) {
      const V x = kGated || r_.residual ? load_at(r_.x, pixel, c, lanes) : constant(0);
      V g[kMax] = {}, y = r_.residual ? x : constant(0);
      compute_gates(g, x, c, lanes);
#pragma GCC unroll 8
      for (int k = 0; k < n_; ++k)
        y = fma(g[k] * scale(k, c, lanes), load_at(r_.m[k], pixel, c, lanes), y);
      store_at(r_.y, pixel, c, lanes, y);
    });
  }

  void backward() const {
    const bool needs_logits = kGated && (r_.grad_x.first || r_.sum_weight);
    const bool needs_m = needs_logits || r_.sum_scale;
    for_each_vector([&](int64_t pixel, int64_t c, auto lanes) __attribute__((always_inline)) {
      const V x = kGated ? load_at(r_.x, pixel, c, lanes) : constant(0);
      const V dy = load_at(r_.grad, pixel, c, lanes);
      V g[kMax] = {}, t[kMax] = {}, mean = constant(0);
      compute_gates(g, x, c, lanes);
#pragma GCC unroll 8
      for (int k = 0; k < n_; ++k) {
        const V scaled = dy * scale(k, c, lanes);
        if (r_.grad_m[k].first) store_at(r_.grad_m[k], pixel, c, lanes, g[k] * scaled);
        if (!needs_m) continue;
        const V m = load_at(r_.m[k], pixel, c, lanes);
        if (r_.sum_scale) add(r_.sum_scale, k, c, dy * g[k], m);
        t[k] = scaled * m;
        mean = fma(g[k], t[k], mean);
      }
      V dx = r_.residual ? dy : constant(0);
      if (needs_logits) {
#pragma GCC unroll 8
        for (int k = 0; k < n_; ++k) {
          const V dl = g[k] * (t[k] - mean);
          dx = fma(parameter(r_.weight, k, c, lanes), dl, dx);
          if (!r_.sum_weight) continue;
          add(r_.sum_weight, k, c, dl, x);
          add(r_.sum_bias, k, c, dl, constant(1));
        }
      }
      if (r_.grad_x.first) store_at(r_.grad_x, pixel, c, lanes, dx);
    });
  }

 private:
  // body(pixel, channel, lanes) for every vector of channels of every pixel.
  template <class Body>
  void for_each_vector(const Body& body) const {
    for (int64_t pixel = 0; pixel < r_.pixels; ++pixel) {
      const auto at_pixel = [&](int64_t c, auto lanes)
                                __attribute__((always_inline)) { body(pixel, c, lanes); };
      HYBRID_ISA::for_each_vector<T>(r_.C, at_pixel);
    }
  }

  template <class Which>
  void compute_gates(V (&g)[kMax], V x, int64_t c, Which lanes) const {
    if (!kGated) {
      for (int k = 0; k < kMax; ++k) g[k] = constant(Scalar(1) / n_);
      return;
    }
    const auto logit = [&](int k) {
      return fma(parameter(r_.weight, k, c, lanes), x, parameter(r_.bias, k, c, lanes));
    };
    V largest = g[0] = logit(0), sum = constant(0);
#pragma GCC unroll 8
    for (int k = 1; k < n_; ++k) {
      g[k] = logit(k);
      largest = max(largest, g[k]);
    }
    // e^(l - largest) = 2^(l log2(e) - base). What rounding does to base is a factor of all g[k].
    const V log2e = constant(1.4426950408889634), base = largest * log2e;
#pragma GCC unroll 8
    for (int k = 0; k < n_; ++k) {
      g[k] = exp2(fma(g[k], log2e, constant(0) - base));
      sum = sum + g[k];
    }
    const V share = constant(1) / sum;
#pragma GCC unroll 8
    for (int k = 0; k < n_; ++k) g[k] = g[k] * share;
  }

  static V constant(Scalar x) { return broadcast(x); }

  template <class Which>
  V scale(int k, int64_t c, Which lanes) const {
    if (!r_.scale) return constant(1);
    return r_.scale_channels == 1 ? constant(r_.scale[k]) : parameter(r_.scale, k, c, lanes);
  }

  template <class Which>
  V parameter(const Scalar* p, int k, int64_t c, Which lanes) const {
    return load_lanes(p + k * r_.C + c, lanes);
  }

  template <class Which>
  static V load_at(const Pixels<const T>& map, int64_t pixel, int64_t c, Which lanes) {
    return load_lanes(map.first + pixel * map.step + c, lanes);
  }
  template <class Which>
  void store_at(const Pixels<T>& map, int64_t pixel, int64_t c, Which lanes, V v) const {
    stream_lanes(map.first + pixel * map.step + c, v, lanes, r_.streams);
  }

  // Adds a b to the sums. Their rows end in whole vectors: idle lanes have a place too.
  void add(Scalar* sums, int k, int64_t c, V a, V b) const {
    Scalar* to = sums + k * r_.sum_stride + c;
    store(to, fma(a, b, load(to)));
  }

  // By value: no store can alias what nobody else points to, so it is not loaded again after each.
  const Row<T> r_;
  const int n_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
