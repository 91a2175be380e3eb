// region_mix row by row: the bands of a job, forward and backward.
#pragma once

#include "../common/stencil/convolve.h"
#include "../common/stencil/cut.h"
#include "../common/streaming.h"
#include "region_mix.h"

namespace hybrid {
namespace HYBRID_ISA {

// For maps of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void region_mix_forward(const RegionMixParams& p, int64_t begin, int64_t end);
template <class T>
void region_mix_backward(const RegionMixParams& p, int64_t begin, int64_t end);

namespace {

// Bands hold whole regions, so that each sum over a region belongs to one job. At hand are the k
// rows of the ring and, in the backward, one of z.
template <class T>
Cut<T> cut_of(const RegionMixParams& p) {
  return Cut<T>(p.B, p.H, p.W, p.C, p.side + 1, p.W + p.side - 1, p.region);
}

// The partial sums of the taps, turned round, and of the bias.
template <class T>
PartSums<T> sums_of(const RegionMixParams& p) {
  const int64_t taps = p.grad_weight ? p.side * p.side : 0;
  return PartSums<T>(cut_of<T>(p), taps + (p.grad_bias ? 1 : 0), p.workspace);
}

template <class T>
bool streams_map(const RegionMixParams& p, const OutputMap& map) {
  constexpr int64_t kBytes = sizeof(T);
  return streams_rows(reinterpret_cast<uintptr_t>(map.data), p.C * kBytes,
                      p.B * p.H * p.W * p.C * kBytes);
}

// What a worker holds while it runs jobs. The ring has rows of z in the forward, of dy in the
// backward: there z needs no halo, since the sums over dy's neighbours of z are those over z's
// neighbours of dy with the taps turned round.
template <class T, int K>
class Worker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;

 public:
  explicit Worker(const RegionMixParams& p)
      : p_(p),
        cut_(cut_of<T>(p)),
        width_(cut_.width),
        ring_(K, p.H, p.W, K / 2, width_),
        taps_(width_),
        region_(static_cast<size_t>(p.W)) {
    for (int64_t j = 0; j < p.W; ++j) region_[j] = j / p.region;
  }

  void forward(int64_t begin, int64_t end) {
    const bool streams = streams_map<T>(p_, p_.y);
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      pack_taps(job, false);
      const auto* bias = p_.bias ? static_cast<const Scalar*>(p_.bias) + job.channel : nullptr;
      const auto read = [&](int64_t image, int64_t i, Scalar* to) { read_sum(job, image, i, to); };
      for_each_row(job, read, [&](int64_t image, int64_t i) {
        T* y = p_.y.row<T>(image, i, job.channel);
        const int64_t step = p_.C;
        convolve_row<T, K>(Window<Scalar, K>(ring_, i, width_), p_.W, taps_.data(), job.channels,
                           [=](int64_t j, int64_t c, auto lanes, V value)
                               __attribute__((always_inline)) {
                                 if (bias) value = value + load_lanes(bias + c, lanes);
                                 stream_lanes(y + j * step + c, value, lanes, streams);
                               });
      });
    }
    stream_fence();
  }

  void backward(int64_t begin, int64_t end) {
    const PartSums<T> sums = sums_of<T>(p_);
    AlignedBuffer<Scalar> z(static_cast<size_t>(p_.W * width_));
    AlignedBuffer<Scalar> regions(static_cast<size_t>(p_.columns * width_));
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      pack_taps(job, true);
      sums.clear(job, width_);
      zero<Scalar>(z, p_.W * width_);  // idle lanes stay so
      const auto read = [&](int64_t image, int64_t i, Scalar* to) {
        load_row(p_.grad.row<T>(image, i, job.channel), p_.grad.stride[2], p_.W, job.channels, to,
                 width_, Identity{});
      };
      for_each_row(job, read, [&](int64_t image, int64_t i) {
        if (p_.grad_x.data || p_.grad_g.data) transpose_row(job, image, i, regions);
        add_sums(sums, job, image, i, z);
      });
    }
    stream_fence();
  }

 private:
  // body(image, row) for the rows of a job, their neighbours in the ring: read(image, row, to).
  template <class Read, class Body>
  void for_each_row(const Job& job, const Read& read, const Body& body) {
    for (int64_t image = job.image_begin; image < job.image_end; ++image) {
      ring_.restart(job.row_begin - K / 2);
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        ring_.fill_to(i + K / 2, [&](int64_t row, Scalar* to) { read(image, row, to); });
        body(image, i);
      }
    }
  }

  void pack_taps(const Job& job, bool turned) {
    const auto* weight = static_cast<const Scalar*>(p_.weight) + job.channel;
    taps_.pack(job.channels, turned, [&](int tap, int64_t c) { return weight[tap * p_.C + c]; });
  }

  // Row i of z = x + g.
  void read_sum(const Job& job, int64_t image, int64_t i, Scalar* to) const {
    const T* x = p_.x.row<T>(image, i, job.channel);
    const T* g = p_.g.row<T>(image, i / p_.region, job.channel);
    for (int64_t j = 0; j < p_.W; ++j, x += p_.x.stride[2], to += width_) {
      const T* token = g + region_[j] * p_.g.stride[2];
      for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        store(to + c, load_lanes(x + c, lanes) + load_lanes(token + c, lanes));
      });
    }
  }

  // Row i of dz, to dx and to the sums over regions, which the last row of a region completes.
  void transpose_row(const Job& job, int64_t image, int64_t i, Scalar* regions) {
    const bool needs_x = p_.grad_x.data, needs_g = p_.grad_g.data;
    const bool streams = streams_map<T>(p_, p_.grad_x);
    if (needs_g && i % p_.region == 0) zero(regions, p_.columns * width_);
    T* dx = p_.grad_x.row<T>(image, i, job.channel);
    const int64_t step = p_.C, width = width_;
    const int64_t* region = region_;
    convolve_row<T, K>(Window<Scalar, K>(ring_, i, width_), p_.W, taps_.data(), job.channels,
                       [=](int64_t j, int64_t c, auto lanes, V dz) __attribute__((always_inline)) {
                         if (needs_x) stream_lanes(dx + j * step + c, dz, lanes, streams);
                         if (!needs_g) return;
                         Scalar* sum = regions + region[j] * width + c;
                         store(sum, load(sum) + dz);
                       });
    if (needs_g && ((i + 1) % p_.region == 0 || i + 1 == p_.H))
      store_regions(job, image, i / p_.region, regions);
  }

  void store_regions(const Job& job, int64_t image, int64_t row, const Scalar* regions) const {
    T* dg = p_.grad_g.row<T>(image, row, job.channel);
    for (int64_t q = 0; q < p_.columns; ++q, dg += p_.C, regions += width_)
      for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) {
        store_lanes(dg + c, load(regions + c), lanes);
      });
  }

  void add_sums(const PartSums<T>& sums, const Job& job, int64_t image, int64_t i, Scalar* z) {
    Scalar* to = sums.at(job);
    if (p_.grad_weight) {
      read_sum(job, image, i, z);
      correlate_row<T, K>(Window<Scalar, K>(ring_, i, width_), p_.W, z, to, sums.row);
      to += K * K * sums.row;
    }
    if (p_.grad_bias) add_pixels<T>(ring_.row(i), p_.W, width_, to);
  }

  const RegionMixParams& p_;
  const Cut<T> cut_;
  const int64_t width_;
  RowRing<Scalar> ring_;
  Taps<Scalar, K> taps_;
  AlignedBuffer<int64_t> region_;  // of a column
};

// call(a worker for the side of the kernels); other sides are refused by the argument checks.
template <class T, class Call>
void with_worker(const RegionMixParams& p, const Call& call) {
  if (p.side == 1) call(Worker<T, 1>(p));
  if (p.side == 3) call(Worker<T, 3>(p));
  if (p.side == 5) call(Worker<T, 5>(p));
  if (p.side == 7) call(Worker<T, 7>(p));
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
