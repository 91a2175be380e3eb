// downsample_pair row by row: the bands of a job, forward and backward. Bands are of the map's rows
// and begin with an output of both scales; an output is the job's that its centre belongs to.
#pragma once

#include "../common/stencil/convolve.h"
#include "../common/stencil/cut.h"
#include "downsample_pair.h"

namespace hybrid {
namespace HYBRID_ISA {

// For maps of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void downsample_pair_forward(const DownsamplePairParams& p, int64_t begin, int64_t end);
template <class T>
void downsample_pair_backward(const DownsamplePairParams& p, int64_t begin, int64_t end);

namespace {

constexpr int64_t kBandUnit = kScaleStride[0] * kScaleStride[1];
constexpr int64_t kRowsSeen = kScaleSide[1];  // by the outputs of the wider stencil
constexpr int64_t kHalo = kRowsSeen / 2;

// Rows of the partial sums: the taps' of both scales, and one for each vector of the norm.
constexpr int64_t kTapTerms[] = {9, 25};
enum Term : int64_t {
  kTaps5 = kTapTerms[0],
  kScaleTerm = kTaps5 + kTapTerms[1],
  kShiftTerm,
  kTerms
};

template <class T>
Cut<T> cut_of(const DownsamplePairParams& p) {
  return Cut<T>(p.B, p.H, p.W, p.C, kRowsSeen, p.W + 2 * kHalo, kBandUnit);
}

template <class T>
PartSums<T> sums_of(const DownsamplePairParams& p) {
  return PartSums<T>(cut_of<T>(p), kTerms, p.workspace);
}

// What a worker holds while it runs jobs.
template <class T>
class Worker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  using Ring = RowRing<Scalar>;

 public:
  explicit Worker(const DownsamplePairParams& p)
      : p_(p),
        cut_(cut_of<T>(p)),
        width_(cut_.width),
        sums_(sums_of<T>(p)),
        normed_(kRowsSeen, p.H, p.W, kHalo, width_),
        taps3_(width_),
        taps5_(width_),
        scale_(width_),
        shift_(width_) {}

  void forward(int64_t begin, int64_t end) {
    for_each_image(begin, end, false, [&](const Job& job, int64_t image) {
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        convolve_scale<0>(taps3_, job, image, i);
        convolve_scale<1>(taps5_, job, image, i);
      }
    });
  }

  // A row of pixels follows when the gradients of the last outputs that read it are at hand.
  void backward(int64_t begin, int64_t end) {
    constexpr int64_t kReaders = 3;  // rows of outputs around those that read one row of pixels
    Ring grads3(kReaders, p_.rows(0), p_.W, kHalo, width_);
    Ring grads5(kReaders, p_.rows(1), p_.W, kHalo, width_);
    AlignedBuffer<Scalar> row(static_cast<size_t>(p_.W * width_));
    for_each_image(begin, end, true, [&](const Job& job, int64_t image) {
      if (image == job.image_begin) sums_.clear(job, width_);
      restart<0>(grads3, job);
      restart<1>(grads5, job);
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        fill_grads<0>(grads3, job, image, i, 0);
        fill_grads<1>(grads5, job, image, i, kTaps5);
        if (!p_.grad_x.data && !p_.grad_scale) continue;
        const auto from3 = Window<Scalar, 3>::transposed(grads3, i, width_, kScaleStride[0], 1);
        convolve_row_as<T, 3, true>(
            from3, p_.W, taps3_.data(), job.channels,
            [to = static_cast<Scalar*>(row), width = width_](int64_t j, int64_t c, auto, V dn)
                __attribute__((always_inline)) { store(to + j * width + c, dn); });
        finish_row(grads5, row, job, image, i);
      }
    });
  }

 private:
  template <int k>
  using ScaleWindow = Window<Scalar, static_cast<int>(kScaleSide[k])>;

  // body(job, image) with the job's parameters at hand and no row of the normed map.
  template <class Body>
  void for_each_image(int64_t begin, int64_t end, bool turned, const Body& body) {
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      taps3_.pack_parameter(p_.weight[0], p_.C, job.channel, job.channels, turned);
      taps5_.pack_parameter(p_.weight[1], p_.C, job.channel, job.channels, turned);
      if (p_.scale)
        scale_.pack_parameter(p_.scale, p_.C, job.channel, job.channels);
      else
        scale_.pack(job.channels, false, [](int, int64_t) { return Scalar(1); });
      shift_.pack_parameter(p_.shift, p_.C, job.channel, job.channels);
      for (int64_t image = job.image_begin; image < job.image_end; ++image) {
        normed_.restart(job.row_begin - kHalo);
        body(job, image);
      }
    }
  }

  void fill_normed(const Job& job, int64_t image, int64_t last) {
    normed_.fill_to(last, [&](int64_t i, Scalar* to) {
      load_row(
          p_.x.row<T>(image, i, job.channel), p_.x.stride[2], p_.W, job.channels, to, width_,
          [scale = scale_.data(), shift = shift_.data()](V x, int64_t c)
              __attribute__((always_inline)) { return fma(load(scale + c), x, load(shift + c)); });
    });
  }

  // Outputs of scale k whose centres lie in row i, if there are any.
  template <int k, class ScaleTaps>
  void convolve_scale(const ScaleTaps& taps, const Job& job, int64_t image, int64_t i) {
    if (i % kScaleStride[k]) return;
    fill_normed(job, image, i + kScaleSide[k] / 2);
    T* y = p_.y[k].row<T>(image, i / kScaleStride[k], job.channel);
    constexpr bool kFetches = k == 0;  // the scale that reads every other row
    const Ahead<T, kScaleStride[0]> next(p_.x, p_.H, image, i + kRowsSeen - kHalo, job.channel);
    convolve_row_as<T, kScaleSide[k], false>(
        ScaleWindow<k>(normed_, i, width_, kScaleStride[k]), p_.columns(k), taps.data(),
        job.channels,
        [y, next, C = p_.C](int64_t j, int64_t c, auto lanes, V sum)
            __attribute__((always_inline)) {
              if (kFetches) next.fetch(j, c);
              store_lanes(y + j * C + c, sum, lanes);
            });
  }

  template <int k>
  void restart(Ring& grads, const Job& job) const {
    grads.restart((job.row_begin - kScaleSide[k] / 2) / kScaleStride[k]);
  }

  // The gradients of scale k in the outputs that read row i, and what those whose centres are the
  // job's add to the sums from `term` on.
  template <int k>
  void fill_grads(Ring& grads, const Job& job, int64_t image, int64_t i, int64_t term) {
    constexpr int64_t kHalf = kScaleSide[k] / 2, kStride = kScaleStride[k];
    const InputMap& grad = p_.grad[k];
    grads.fill_to((i + kHalf) / kStride, [&](int64_t o, Scalar* to) {
      load_row(grad.row<T>(image, o, job.channel), grad.stride[2], p_.columns(k), job.channels, to,
               kStride * width_, Identity{});
      const int64_t centre = o * kStride;
      if (!p_.grad_weight[k] || centre < job.row_begin || centre >= job.row_end) return;
      fill_normed(job, image, centre + kHalf);
      correlate_row_as<T, kScaleSide[k], false>(ScaleWindow<k>(normed_, centre, width_, kStride),
                                                p_.columns(k), to, sums_.at(job) + term * sums_.row,
                                                sums_.row);
    });
  }

  // Row i of dn: what the narrower stencil left in `row` and what comes from the wider one; and
  // what follows from it.
  void finish_row(const Ring& grads, const Scalar* row, const Job& job, int64_t image,
                  int64_t i) const {
    T* dx = p_.grad_x.data ? p_.grad_x.row<T>(image, i, job.channel) : nullptr;
    const T* x = p_.x.row<T>(image, i, job.channel);
    Scalar* dscale = sums_.at(job) + kScaleTerm * sums_.row;
    Scalar* dshift = sums_.at(job) + kShiftTerm * sums_.row;
    convolve_row_as<T, 5, true>(
        ScaleWindow<1>::transposed(grads, i, width_, kScaleStride[1], 1), p_.W, taps5_.data(),
        job.channels,
        [=, scale = scale_.data(), C = p_.C, width = width_, step = p_.x.stride[2],
         needs_sums = p_.grad_scale != nullptr](int64_t j, int64_t c, auto lanes, V sum)
            __attribute__((always_inline)) {
              const V dn = sum + load(row + j * width + c);
              if (dx) store_lanes(dx + j * C + c, load(scale + c) * dn, lanes);
              if (!needs_sums) return;
              const V pixel = load_lanes(x + j * step + c, lanes);
              store(dscale + c, fma(dn, pixel, load(dscale + c)));
              store(dshift + c, load(dshift + c) + dn);
            });
  }

  const DownsamplePairParams& p_;
  const Cut<T> cut_;
  const int64_t width_;
  const PartSums<T> sums_;
  Ring normed_;
  Taps<Scalar, 3> taps3_;
  Taps<Scalar, 5> taps5_;
  PerChannel<Scalar> scale_, shift_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
