// value_conv row by row: the bands of a job, forward and backward.
#pragma once

#include "../common/activations.h"
#include "../common/stencil/convolve.h"
#include "../common/stencil/cut.h"
#include "value_conv.h"

namespace hybrid {
namespace HYBRID_ISA {

// For maps of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void value_conv_forward(const ValueConvParams& p, int64_t begin, int64_t end);
template <class T>
void value_conv_backward(const ValueConvParams& p, int64_t begin, int64_t end);

namespace {

constexpr int64_t kSide = 3, kTaps = kSide * kSide;

// Rows of the partial sums: the taps', and one for each of the other parameters.
enum Term : int64_t { kBiasTerm = kTaps, kScaleTerm, kShiftTerm, kTerms };

template <class T>
Cut<T> cut_of(const ValueConvParams& p) {
  return Cut<T>(p.B, p.H, p.W, p.C, kSide, p.W + 2);
}

template <class T>
PartSums<T> sums_of(const ValueConvParams& p) {
  return PartSums<T>(cut_of<T>(p), kTerms, p.workspace);
}

// What a worker holds while it runs jobs; kNorm: with the folded norm and the second activation.
template <class T, bool kNorm>
class Worker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  using Window3 = Window<Scalar, kSide>;

 public:
  explicit Worker(const ValueConvParams& p)
      : p_(p),
        cut_(cut_of<T>(p)),
        width_(cut_.width),
        sums_(sums_of<T>(p)),
        hidden_(kSide, p.H, p.W, 1, width_),
        taps_(width_),
        bias_(width_),
        scale_(width_),
        shift_(width_) {}

  void forward(int64_t begin, int64_t end) {
    const bool streams = streams_map<T>(p_.y, p_.B, p_.H);
    for_each_image(begin, end, [&](const Job& job, int64_t image) {
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        fill_hidden(job, image, i + 1);
        T* y = p_.y.row<T>(image, i, job.channel);
        const Ahead<T> next(p_.v, p_.H, image, i + 2, job.channel);
        const Ahead<T> next_out(p_.out, p_.H, image, i + 1, job.channel);
        for_each_z(job, image, i,
                   [=, C = p_.C, scale = scale_.data(), shift = shift_.data()](
                       int64_t j, int64_t c, auto lanes, V z) __attribute__((always_inline)) {
                     next.fetch(j, c);
                     next_out.fetch(j, c);
                     const V t = kNorm ? fma(load(scale + c), z, load(shift + c)) : z;
                     stream_lanes(y + j * C + c, kNorm ? Hardswish::value(t) : t, lanes, streams);
                   });
      }
    });
    stream_fence();
  }

  void backward(int64_t begin, int64_t end) {
    RowRing<Scalar> dz(kSide, p_.H, p_.W, 1, width_);
    Taps<Scalar, kSide> turned(width_);
    const bool streams = p_.grad_v.data && streams_map<T>(p_.grad_v, p_.B, p_.H);
    const int64_t halo = p_.grad_v.data ? 1 : 0;
    for_each_image(begin, end, [&](const Job& job, int64_t image) {
      if (image == job.image_begin) {
        turned.pack_parameter(p_.weight, p_.C, job.channel, job.channels, true);
        sums_.clear(job, width_);
      }
      dz.restart(job.row_begin - halo);
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        dz.fill_to(i + halo, [&](int64_t row, Scalar* to) {
          const bool is_own = row >= job.row_begin && row < job.row_end;
          fill_dz(job, image, row, is_own, to);
          if (is_own) use_dz(job, image, row, to);
        });
        if (!p_.grad_v.data) continue;
        T* dv = p_.grad_v.row<T>(image, i, job.channel);
        const T* v = p_.v.row<T>(image, i, job.channel);
        const Ahead<T> next(p_.grad, p_.H, image, i + 2, job.channel);
        const Ahead<T> next_v(p_.v, p_.H, image, i + 2, job.channel);
        convolve_row_as<T, kSide, true>(
            Window3(dz, i, width_), p_.W, turned.data(), job.channels,
            [=, C = p_.C, step = p_.v.stride[2]](int64_t j, int64_t c, auto lanes, V dh)
                __attribute__((always_inline)) {
                  next.fetch(j, c);
                  next_v.fetch(j, c);
                  const V slope = Hardswish::derivative(load_lanes(v + j * step + c, lanes));
                  stream_lanes(dv + j * C + c, dh * slope, lanes, streams);
                });
      }
    });
    stream_fence();
  }

 private:
  // body(job, image) with the job's parameters at hand and no row of hardswish(v).
  template <class Body>
  void for_each_image(int64_t begin, int64_t end, const Body& body) {
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      taps_.pack_parameter(p_.weight, p_.C, job.channel, job.channels);
      bias_.pack_parameter(p_.bias, p_.C, job.channel, job.channels);
      scale_.pack_parameter(p_.scale, p_.C, job.channel, job.channels);
      shift_.pack_parameter(p_.shift, p_.C, job.channel, job.channels);
      for (int64_t image = job.image_begin; image < job.image_end; ++image) {
        hidden_.restart(job.row_begin - 2);
        body(job, image);
      }
    }
  }

  void fill_hidden(const Job& job, int64_t image, int64_t last) {
    hidden_.fill_to(last, [&](int64_t i, Scalar* to) {
      load_row(p_.v.row<T>(image, i, job.channel), p_.v.stride[2], p_.W, job.channels, to, width_,
               [](V v, int64_t) __attribute__((always_inline)) { return Hardswish::value(v); });
    });
  }

  // emit(pixel, channel, lanes, z) of a row.
  template <class Emit>
  void for_each_z(const Job& job, int64_t image, int64_t i, const Emit& emit) const {
    const T* out = p_.out.row<T>(image, i, job.channel);
    convolve_row_as<T, kSide, true>(
        Window3(hidden_, i, width_), p_.W, taps_.data(), job.channels,
        [=, bias = bias_.data(), step = p_.out.stride[2]](int64_t j, int64_t c, auto lanes, V sum)
            __attribute__((always_inline)) {
              const V attended = load_lanes(out + j * step + c, lanes);
              emit(j, c, lanes, attended + (sum + load(bias + c)));
            });
  }

  // A row of dz, and, of the job's own rows, the sums for the norm.
  void fill_dz(const Job& job, int64_t image, int64_t row, bool is_own, Scalar* to) {
    const T* grad = p_.grad.row<T>(image, row, job.channel);
    if constexpr (kNorm)
      fill_normed_dz(grad, job, image, row, is_own, to);
    else
      load_row(grad, p_.grad.stride[2], p_.W, job.channels, to, width_, Identity{});
  }

  void fill_normed_dz(const T* grad, const Job& job, int64_t image, int64_t row, bool is_own,
                      Scalar* to) {
    fill_hidden(job, image, row + 1);
    const bool sums = is_own && p_.grad_scale;
    Scalar* dscale = sums_.at(job) + kScaleTerm * sums_.row;
    Scalar* dshift = sums_.at(job) + kShiftTerm * sums_.row;
    for_each_z(job, image, row,
               [=, scale = scale_.data(), shift = shift_.data(), step = p_.grad.stride[2],
                width = width_](int64_t j, int64_t c, auto lanes, V z)
                   __attribute__((always_inline)) {
                     const V factor = load(scale + c), dy = load_lanes(grad + j * step + c, lanes);
                     const V dt = dy * Hardswish::derivative(fma(factor, z, load(shift + c)));
                     store(to + j * width + c, factor * dt);
                     if (!sums) return;
                     store(dscale + c, fma(dt, z, load(dscale + c)));
                     store(dshift + c, load(dshift + c) + dt);
                   });
  }

  // What the job's own rows of dz give besides dv.
  void use_dz(const Job& job, int64_t image, int64_t row, const Scalar* dz) {
    if (p_.grad_out.data) {
      T* dout = p_.grad_out.row<T>(image, row, job.channel);
      for (int64_t j = 0; j < p_.W; ++j, dout += p_.C)
        for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          store_lanes(dout + c, load(dz + j * width_ + c), lanes);
        });
    }
    if (!p_.grad_weight) return;
    fill_hidden(job, image, row + 1);
    correlate_row_as<T, kSide, true>(Window3(hidden_, row, width_), p_.W, dz, sums_.at(job),
                                     sums_.row);
    add_pixels<T>(dz, p_.W, width_, sums_.at(job) + kBiasTerm * sums_.row);
  }

  const ValueConvParams& p_;
  const Cut<T> cut_;
  const int64_t width_;
  const PartSums<T> sums_;
  RowRing<Scalar> hidden_;  // hardswish(v)
  Taps<Scalar, kSide> taps_;
  PerChannel<Scalar> bias_, scale_, shift_;
};

// run(worker) with a worker for or without the norm.
template <class T, class Run>
void with_worker(const ValueConvParams& p, const Run& run) {
  if (p.scale)
    run(Worker<T, true>(p));
  else
    run(Worker<T, false>(p));
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
