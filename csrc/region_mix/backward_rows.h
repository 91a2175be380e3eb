// region_mix backward on the CPU. The walk is along dy, and gives dz with the taps turned round. It
// also sums the gradients of the taps: what they see of z around a pixel of dy is, from a pixel of
// z, the pixels of dy around it, so that z needs no rows but the present one.
#pragma once

#include "mix_rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// What the taps and the bias of a vector of channels have summed up.
template <class T, int K>
struct TapSums {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  V taps[K][K] = {}, bias = {};

  // Adds them to sums that lie `row` apart: of the taps, then of the bias.
  __attribute__((always_inline)) void add_to(Scalar* sums, int64_t row, bool needs_taps,
                                             bool needs_bias) const {
    if (needs_taps) {
#pragma GCC unroll 49
      for (int tap = 0; tap < K * K; ++tap)
        store(sums + tap * row, load(sums + tap * row) + taps[tap / K][tap % K]);
      sums += K * K * row;
    }
    if (needs_bias) store(sums, load(sums) + bias);
  }
};

// The K rows of dy around row i, and row i of z, for a vector of channels.
template <class T, int K, class Lanes>
class RowsOfGradient {
  using V = typename Arithmetic<T>::Vector;

 public:
  // Columns first .. last - 1 of z.
  RowsOfGradient(const RegionMixParams& p, int64_t image, int64_t i, int64_t first, int64_t last,
                 int64_t c, Lanes lanes, TapSums<T, K>& sums)
      : lanes_(lanes),
        first_(first),
        last_(last),
        step_(p.grad.stride[2]),
        needs_taps_(p.grad_weight),
        z_(p, image, i, first, c, lanes),
        sums_(sums) {
#pragma GCC unroll 7
    for (int e = 0; e < K; ++e) {
      const int64_t row = i + e - K / 2;
      dy_[e] = row >= 0 && row < p.H ? p.grad.row<T>(image, row, c) : nullptr;
    }
  }

  __attribute__((always_inline)) void advance(int64_t j) {
    if (!needs_taps_) return;
#pragma GCC unroll 7
    for (int m = 0; m + 1 < K; ++m) seen_[m] = seen_[m + 1];
    const int64_t column = j + K / 2;
    seen_[K - 1] = V{};
    if (column < first_ || column >= last_) return;
    z_.advance(column);
    seen_[K - 1] = z_.at(0, column);
  }

  __attribute__((always_inline)) bool has(int e) const { return dy_[e]; }
  __attribute__((always_inline)) V at(int e, int64_t j) const {
    return load_lanes(dy_[e] + j * step_, lanes_);
  }

  __attribute__((always_inline)) void meet(int e, int64_t j, V dy) {
    if (e == K / 2 && j >= first_ && j < last_) sums_.bias = sums_.bias + dy;
    if (!needs_taps_) return;
#pragma GCC unroll 7
    for (int m = 0; m < K; ++m)
      sums_.taps[K - 1 - e][m] = fma(dy, seen_[m], sums_.taps[K - 1 - e][m]);
  }

 private:
  const Lanes lanes_;
  const int64_t first_, last_, step_;
  const bool needs_taps_;
  const T* dy_[K];
  RowsOfZ<T, 1, Lanes> z_;
  V seen_[K] = {};  // columns j - K / 2 .. j + K / 2 of z
  TapSums<T, K>& sums_;
};

// What a worker holds while it walks: the sums of dz over the regions of a block.
template <class T, int K>
class BackwardWorker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;

 public:
  explicit BackwardWorker(const RegionMixParams& p)
      : p_(p),
        width_(whole_vectors<T>(p.C)),
        block_(larger(1, kBlockPixels / (p.W * p.region))),
        tokens_(static_cast<size_t>(p.grad_g.data ? block_ * p.columns * width_ : 0)),
        region_(static_cast<size_t>(p.W)) {
    for (int64_t j = 0; j < p.W; ++j) region_[j] = j / p.region;
  }

  // Rows of regions in one call of run().
  int64_t block() const { return block_; }

  // Rows of regions begin .. end - 1; adds to the sums of their part.
  void run(int64_t image, int64_t begin, int64_t end, Scalar* sums, int64_t sum_row) {
    if (p_.grad_g.data) zero<Scalar>(tokens_, (end - begin) * p_.columns * width_);
    const int64_t top = begin * p_.region, bottom = smaller(p_.H, end * p_.region);
    Fetch dy_ahead = Fetch::rows<T>(p_.grad, image, bottom + K / 2, p_.W, p_.C);
    Fetch x_ahead = Fetch::rows<T>(p_.x, image, bottom, p_.W, p_.C);
    for_each_tile(p_.W, [&](int64_t first, int64_t last) {
      for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        V taps[K][K];
        load_taps<K>(static_cast<const Scalar*>(p_.weight) + c, p_.C, lanes, true, taps);
        TapSums<T, K> met;
        for (int64_t i = top; i < bottom; ++i)
          walk(image, i, i / p_.region - begin, first, last, c, lanes, taps, met, dy_ahead,
               x_ahead);
        met.add_to(sums + c, sum_row, p_.grad_weight, p_.grad_bias);
      });
    });
    if (p_.grad_g.data) store_tokens(image, begin, end);
  }

 private:
  // Row i of dz, to dx and to the sums over the regions of row `row` of the block.
  template <class Lanes>
  __attribute__((always_inline)) void walk(int64_t image, int64_t i, int64_t row, int64_t first,
                                           int64_t last, int64_t c, Lanes lanes,
                                           const V (&taps)[K][K], TapSums<T, K>& sums,
                                           Fetch& dy_ahead, Fetch& x_ahead) const {
    constexpr int64_t kBytes = Arithmetic<T>::kCount * sizeof(T);
    const bool needs_x = p_.grad_x.data, needs_g = p_.grad_g.data;
    const bool streams = streams_vectors<T>(p_.grad_x, p_.B, p_.H);
    const int64_t C = p_.C, width = width_;
    const int64_t* region = region_;
    T* dx = p_.grad_x.row<T>(image, i, c);
    Scalar* tokens = tokens_ + row * p_.columns * width + c;
    Fetch next_dy = dy_ahead, next_x = x_ahead;  // in registers
    RowsOfGradient<T, K, Lanes> dy(p_, image, i, first, last, c, lanes, sums);
    walk_rows<K, 1>(taps, first, last, p_.W, dy,
                    [=, &next_dy, &next_x](int64_t j, const V(&dz)[1])
                        __attribute__((always_inline)) {
                          next_dy.next(kBytes);
                          next_x.next(kBytes);
                          if (needs_x) stream_lanes(dx + j * C, dz[0], lanes, streams);
                          if (!needs_g) return;
                          Scalar* token = tokens + region[j] * width;
                          store(token, load(token) + dz[0]);
                        });
    dy_ahead = next_dy;
    x_ahead = next_x;
  }

  void store_tokens(int64_t image, int64_t begin, int64_t end) const {
    T* dg = p_.grad_g.row<T>(image, begin, 0);
    for (int64_t q = 0; q < (end - begin) * p_.columns; ++q, dg += p_.C)
      for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) {
        store_lanes(dg + c, load(tokens_ + q * width_ + c), lanes);
      });
  }

  const RegionMixParams& p_;
  const int64_t width_, block_;
  AlignedBuffer<Scalar> tokens_;
  AlignedBuffer<int64_t> region_;  // of a column
};

template <class T, int K>
void backward_parts(const RegionMixParams& p, int64_t begin, int64_t end) {
  const RegionRows rows = rows_of(p);
  const PartSums<T> sums = sums_of<T>(p);
  BackwardWorker<T, K> worker(p);
  for (int64_t part = begin; part < end; ++part) {
    sums.clear(part);
    for (int64_t row = rows.begin(part), next; row < rows.end(part); row = next) {
      const int64_t image = row / p.rows, end = smaller(rows.end(part), (image + 1) * p.rows);
      next = smaller(end, row + worker.block());
      worker.run(image, row - image * p.rows, next - image * p.rows, sums.at(part), sums.row);
    }
  }
  stream_fence();
}

template <class T>
void run_backward(const RegionMixParams& p, int64_t begin, int64_t end) {
  if (p.side == 1) backward_parts<T, 1>(p, begin, end);
  if (p.side == 3) backward_parts<T, 3>(p, begin, end);
  if (p.side == 5) backward_parts<T, 5>(p, begin, end);
  if (p.side == 7) backward_parts<T, 7>(p, begin, end);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
