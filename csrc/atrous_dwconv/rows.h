// atrous_dwconv row by row: the bands of a job, forward and backward. Bands are of output rows.
#pragma once

#include "../common/stencil/convolve.h"
#include "../common/stencil/cut.h"
#include "atrous_dwconv.h"

namespace hybrid {
namespace HYBRID_ISA {

// For maps of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void atrous_dwconv_forward(const AtrousDwconvParams& p, int64_t begin, int64_t end);
template <class T>
void atrous_dwconv_backward(const AtrousDwconvParams& p, int64_t begin, int64_t end);

namespace {

constexpr int64_t kSide = 3, kTaps = kSide * kSide;

// Input rows that the outputs of one row see, from the first to the last.
inline int64_t rows_seen(const AtrousDwconvParams& p) { return 2 * p.widest() + 1; }

template <class T>
Cut<T> cut_of(const AtrousDwconvParams& p) {
  return Cut<T>(p.B, p.out_H, p.out_W, p.C, rows_seen(p), p.W + 2 * p.widest());
}

// Rows 9 k to 9 k + 8 of the partial sums belong to the taps of branch k.
template <class T>
PartSums<T> sums_of(const AtrousDwconvParams& p) {
  return PartSums<T>(cut_of<T>(p), p.n * kTaps, p.workspace);
}

// Whether the branches, together, are better written past the caches.
template <class T>
bool streams_branches(const AtrousDwconvParams& p) {
  bool streams = p.y[0].data;
  for (int k = 0; streams && k < p.n; ++k) streams = streams_map<T>(p.y[k], p.B, p.out_H, p.n);
  return streams;
}

// What a worker holds while it runs jobs.
template <class T>
class Worker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  using Window3 = Window<Scalar, kSide>;

 public:
  explicit Worker(const AtrousDwconvParams& p)
      : p_(p),
        cut_(cut_of<T>(p)),
        width_(cut_.width),
        halo_(p.widest()),
        streams_(streams_branches<T>(p)),
        x_(rows_seen(p), p.H, p.W, halo_, width_),
        taps_(width_, p.n) {}

  void forward(int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      pack(job, false);
      for (int64_t image = job.image_begin; image < job.image_end; ++image) {
        restart_x(job);
        for (int64_t o = job.row_begin; o < job.row_end; ++o) {
          fill_x(job, image, o);
          p_.stride == 1 ? convolve<1>(job, image, o) : convolve<2>(job, image, o);
        }
      }
    }
    stream_fence();
  }

  // A row of pixels follows when the gradients of the last outputs that read it are at hand.
  void backward(int64_t begin, int64_t end) {
    const int64_t beside = ceil_div(halo_, p_.stride);  // outputs around a pixel that read it
    RowRing<Scalar> grads(p_.n * (2 * beside + 1), p_.n * p_.out_H, p_.W, halo_, width_);
    AlignedBuffer<Scalar> dx(static_cast<size_t>(p_.W * width_));
    const PartSums<T> sums = sums_of<T>(p_);
    const int64_t outside = p_.grad_x.data ? beside : 0;
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      pack(job, true);
      if (p_.grad_weight) sums.clear(job, width_);
      for (int64_t image = job.image_begin; image < job.image_end; ++image) {
        restart_x(job);
        grads.restart(p_.n * (job.row_begin - outside));
        for (int64_t o = job.row_begin; o < job.row_end; ++o) {
          grads.fill_to(p_.n * (o + outside + 1) - 1, [&](int64_t row, Scalar* to) {
            fill_grad(job, image, row / p_.n, static_cast<int>(row % p_.n), to, sums);
          });
          for (int64_t i = o * p_.stride; i < smaller(p_.H, (o + 1) * p_.stride); ++i)
            if (p_.grad_x.data) store_dx(grads, dx, job, image, i);
        }
      }
    }
  }

 private:
  void pack(const Job& job, bool turned) {
    for (int64_t k = 0; k < p_.n; ++k) {
      const Scalar* weight =
          static_cast<const Scalar*>(p_.weight) + (k * p_.C + job.channel) * kTaps;
      taps_.pack(
          job.channels, turned, [&](int tap, int64_t c) { return weight[c * kTaps + tap]; }, k);
    }
  }

  Window3 window(int64_t o, int k) const {
    return Window3(x_, o * p_.stride, width_, p_.stride, p_.dilation[k]);
  }

  void restart_x(const Job& job) { x_.restart(job.row_begin * p_.stride - halo_); }

  // The rows that the outputs of row o see.
  void fill_x(const Job& job, int64_t image, int64_t o) {
    x_.fill_to(o * p_.stride + halo_, [&](int64_t i, Scalar* to) {
      load_row(p_.x.row<T>(image, i, job.channel), p_.x.stride[2], p_.W, job.channels, to, width_,
               Identity{});
    });
  }

  // Row o of the branches. The first of them fetches what row o + 1 will see beyond this one.
  template <int kStride>
  void convolve(const Job& job, int64_t image, int64_t o) const {
    const Ahead<T, kStride> next(p_.x, p_.H, image, (o + 1) * kStride + halo_ - kStride + 1,
                                 job.channel);
    for (int k = 0; k < p_.n; ++k) {
      T* y = p_.y[k].row<T>(image, o, job.channel);
      convolve_row<T, kSide>(
          window(o, k), p_.out_W, taps_.data(k), job.channels,
          [=, C = p_.C, streams = streams_](int64_t j, int64_t c, auto lanes, V sum)
              __attribute__((always_inline)) {
                if (k == 0) next.fetch(j, c);
                stream_lanes(y + j * C + c, sum, lanes, streams);
              });
    }
  }

  // The gradient of branch k in outputs of row o, and what it adds to the sums if it is the job's.
  void fill_grad(const Job& job, int64_t image, int64_t o, int k, Scalar* to,
                 const PartSums<T>& sums) {
    const InputMap& grad = p_.grad[k];
    load_row(grad.row<T>(image, o, job.channel), grad.stride[2], p_.out_W, job.channels, to,
             p_.stride * width_, Identity{});
    if (!p_.grad_weight || o < job.row_begin || o >= job.row_end) return;
    fill_x(job, image, o);
    correlate_row<T, kSide>(window(o, k), p_.out_W, to, sums.at(job) + k * kTaps * sums.row,
                            sums.row);
  }

  // Row i of dx: the branches are added in float, one after the other.
  void store_dx(const RowRing<Scalar>& grads, Scalar* row, const Job& job, int64_t image,
                int64_t i) const {
    T* dx = p_.grad_x.row<T>(image, i, job.channel);
    for (int k = 0; k < p_.n; ++k) {
      const bool is_first = k == 0, is_last = k == p_.n - 1;
      convolve_row<T, kSide>(
          Window3::transposed(grads, i, width_, p_.stride, p_.dilation[k], p_.n, k), p_.W,
          taps_.data(k), job.channels,
          [=, C = p_.C, width = width_](int64_t j, int64_t c, auto lanes, V sum)
              __attribute__((always_inline)) {
                if (!is_first) sum = sum + load(row + j * width + c);
                if (is_last)
                  store_lanes(dx + j * C + c, sum, lanes);
                else
                  store(row + j * width + c, sum);
              });
    }
  }

  const AtrousDwconvParams& p_;
  const Cut<T> cut_;
  const int64_t width_, halo_;
  const bool streams_;
  RowRing<Scalar> x_;
  Taps<Scalar, kSide> taps_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
