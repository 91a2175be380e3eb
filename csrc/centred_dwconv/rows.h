// centred_dwconv row by row: the bands of a job, their sums first, then the stencil.
//
// The stencil of an image waits for the sums of all its bands. A thread that has got all jobs of a
// group of images goes on to their stencil at once, while the caches hold them; what several
// threads share is finished by a second launch. The bits are the same either way.
#pragma once

#include "../common/stencil/convolve.h"
#include "../common/stencil/cut.h"
#include "centred_dwconv.h"

namespace hybrid {
namespace HYBRID_ISA {

enum class Pass { forward_start, forward_finish, backward_start, backward_finish };

// For maps of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void centred_dwconv(const CentredDwconvParams& p, Pass pass, int64_t begin, int64_t end);

namespace {

constexpr int64_t kSide = 3, kTaps = kSide * kSide;

template <class T>
Cut<T> cut_of(const CentredDwconvParams& p) {
  return Cut<T>(p.B, p.H, p.W, p.C, kSide, p.W + 2);
}

// Where things lie in the workspace.
template <class T>
struct Workspace {
  PartSums<T> bands;  // sums over the pixels of every band of every image, band by band
  PartSums<T> taps;   // partial sums of the gradient of the taps
  char* done;         // of a group of images: whether its stencil has run
  int64_t bytes;

  explicit Workspace(const CentredDwconvParams& p) : Workspace(p, cut_of<T>(p)) {}

 private:
  Workspace(const CentredDwconvParams& p, const Cut<T>& cut)
      : bands(p.B * cut.bands, 1, cut.row_of_sums(), p.workspace),
        taps(cut, p.grad_weight ? kTaps : 0, at(p, bands.bytes())),
        done(at(p, bands.bytes() + taps.bytes())),
        bytes(bands.bytes() + taps.bytes() + cut.groups) {}

  // Null while the size is asked for.
  static char* at(const CentredDwconvParams& p, int64_t offset) {
    return p.workspace ? static_cast<char*>(p.workspace) + offset : nullptr;
  }
};

// What a worker holds while it runs jobs.
template <class T>
class Worker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  using Window3 = Window<Scalar, kSide>;

 public:
  explicit Worker(const CentredDwconvParams& p)
      : p_(p),
        cut_(cut_of<T>(p)),
        width_(cut_.width),
        sums_(p),
        ring_(kSide, p.H, p.W, 1, width_),
        taps_(width_),
        mean_(width_) {}

  void run(Pass pass, int64_t begin, int64_t end) {
    const int64_t of_group = cut_.bands * cut_.blocks;  // jobs
    for (int64_t job = begin, last; job < end; job = last) {
      const int64_t group = job / of_group, first = group * of_group;
      last = smaller(end, first + of_group);
      const bool is_whole = job == first && last == first + of_group;
      if (pass == Pass::forward_start || pass == Pass::backward_start) {
        pass == Pass::forward_start ? forward_sums(job, last) : backward_sums(job, last);
        if (job == first) sums_.done[group] = is_whole;
        if (!is_whole) continue;
      } else if (sums_.done[group]) {
        continue;
      }
      const bool is_forward = pass == Pass::forward_start || pass == Pass::forward_finish;
      is_forward ? forward(job, last) : backward(job, last);
    }
  }

 private:
  // Of x.
  void forward_sums(int64_t begin, int64_t end) {
    for_each_band(begin, end, [&](const Job& job, int64_t image, Scalar* sums) {
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        const T* row = p_.x.row<T>(image, i, job.channel);
        const Ahead<T> next(p_.x, p_.H, image, i + 1, job.channel);
        for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          store(sums + c, load(sums + c) + sum_of_row(row, p_.x.stride[2], c, lanes, next));
        });
      }
    });
  }

  void forward(int64_t begin, int64_t end) {
    const bool streams = streams_map<T>(p_.y, p_.B, p_.H);
    for_each_image(begin, end, false, [&](const Job& job, int64_t image) {
      pack_mean(job, image, mean_);
      if (job.row_begin == 0) store_mean(job, image);
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        fill_centred(job, image, i + 1);
        T* y = p_.y.row<T>(image, i, job.channel);
        const Ahead<T> next(p_.x, p_.H, image, i + 2, job.channel);
        convolve_row_as<T, kSide, true>(Window3(ring_, i, width_), p_.W, taps_.data(), job.channels,
                                        [=, C = p_.C](int64_t j, int64_t c, auto lanes, V sum)
                                            __attribute__((always_inline)) {
                                              next.fetch(j, c);
                                              stream_lanes(y + j * C + c, sum, lanes, streams);
                                            });
      }
    });
    stream_fence();
  }

  // Of the gradient of x before its mean is taken away: by column v of taps, the rows of them that
  // stay in the map times all pixels but the one that does not.
  void backward_sums(int64_t begin, int64_t end) {
    if (!p_.grad_x.data) return;
    for_each_band(begin, end, [&](const Job& job, int64_t image, Scalar* sums) {
      taps_.pack_parameter(p_.weight, p_.C, job.channel, job.channels);
      const int64_t step = p_.grad.stride[2];
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        const T* row = p_.grad.row<T>(image, i, job.channel);
        const Ahead<T> next(p_.grad, p_.H, image, i + 1, job.channel);
        for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const V all = sum_of_row(row, step, c, lanes, next);
          const V inside[kSide] = {all - load_lanes(row + c, lanes), all,
                                   all - load_lanes(row + (p_.W - 1) * step + c, lanes)};
          V total = load(sums + c);
          for (int64_t u = i > 0 ? 0 : 1; u < kSide && i + u - 1 < p_.H; ++u)
            for (int64_t v = 0; v < kSide; ++v)
              total = fma(load(taps_.data() + (u * kSide + v) * width_ + c), inside[v], total);
          store(sums + c, total);
        });
      }
    });
  }

  void backward(int64_t begin, int64_t end) {
    RowRing<Scalar> dy(kSide, p_.H, p_.W, 1, width_);
    PerChannel<Scalar> grad_mean(width_);
    const bool streams = p_.grad_x.data && streams_map<T>(p_.grad_x, p_.B, p_.H);
    const int64_t halo = p_.grad_x.data ? 1 : 0;
    for_each_image(begin, end, true, [&](const Job& job, int64_t image) {
      if (p_.grad_weight && image == job.image_begin) sums_.taps.clear(job, width_);
      mean_.pack_parameter(static_cast<const Scalar*>(p_.mean) + image * p_.C, p_.C, job.channel,
                           job.channels);
      if (p_.grad_x.data) pack_mean(job, image, grad_mean);
      dy.restart(job.row_begin - halo);
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        dy.fill_to(i + halo, [&](int64_t row, Scalar* to) {
          load_row(p_.grad.row<T>(image, row, job.channel), p_.grad.stride[2], p_.W, job.channels,
                   to, width_, Identity{});
          if (!p_.grad_weight || row < job.row_begin || row >= job.row_end) return;
          fill_centred(job, image, row + 1);
          correlate_row_as<T, kSide, true>(Window3(ring_, row, width_), p_.W, to,
                                           sums_.taps.at(job), sums_.taps.row);
        });
        if (p_.grad_x.data) store_dx(job, image, i, dy, grad_mean.data(), streams);
      }
    });
    stream_fence();
  }

  void store_dx(const Job& job, int64_t image, int64_t i, const RowRing<Scalar>& dy,
                const Scalar* grad_mean, bool streams) const {
    T* dx = p_.grad_x.row<T>(image, i, job.channel);
    const Ahead<T> next(p_.grad, p_.H, image, i + 2, job.channel);
    const Ahead<T> next_x(p_.x, p_.H, image, i + 2, job.channel);
    convolve_row_as<T, kSide, true>(
        Window3(dy, i, width_), p_.W, taps_.data(), job.channels,
        [=, C = p_.C](int64_t j, int64_t c, auto lanes, V sum) __attribute__((always_inline)) {
          next.fetch(j, c);
          next_x.fetch(j, c);
          stream_lanes(dx + j * C + c, sum - load(grad_mean + c), lanes, streams);
        });
  }

  // body(job, image, sums) for the bands of a job, their sums zero.
  template <class Body>
  void for_each_band(int64_t begin, int64_t end, const Body& body) {
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      for (int64_t image = job.image_begin; image < job.image_end; ++image) {
        Scalar* sums = sums_.bands.at(image * cut_.bands + job.part % cut_.bands) + job.channel;
        zero(sums, width_);
        body(job, image, sums);
      }
    }
  }

  // body(job, image) with the job's taps at hand, in order or turned round, and no row of x.
  template <class Body>
  void for_each_image(int64_t begin, int64_t end, bool turned, const Body& body) {
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      taps_.pack_parameter(p_.weight, p_.C, job.channel, job.channels, turned);
      for (int64_t image = job.image_begin; image < job.image_end; ++image) {
        ring_.restart(job.row_begin - 1);
        body(job, image);
      }
    }
  }

  // Of a vector of channels; the pixels of the next row are asked for.
  template <class Lanes>
  V sum_of_row(const T* row, int64_t step, int64_t c, Lanes lanes, const Ahead<T>& next) const {
    V even{}, odd{};
    int64_t j = 0;
    for (; j + 1 < p_.W; j += 2) {
      next.fetch(j, c);
      next.fetch(j + 1, c);
      even = even + load_lanes(row + j * step + c, lanes);
      odd = odd + load_lanes(row + (j + 1) * step + c, lanes);
    }
    return j < p_.W ? even + odd + load_lanes(row + j * step + c, lanes) : even + odd;
  }

  // The mean of an image, from the sums of its bands.
  void pack_mean(const Job& job, int64_t image, PerChannel<Scalar>& mean) const {
    const Scalar* sums = sums_.bands.at(image * cut_.bands) + job.channel;
    const auto pixels = static_cast<Scalar>(p_.H * p_.W);
    mean.pack(job.channels, false, [&](int, int64_t c) {
      double sum = 0;
      for (int64_t band = 0; band < cut_.bands; ++band) sum += sums[band * sums_.bands.row + c];
      return static_cast<Scalar>(sum / pixels);
    });
  }

  void store_mean(const Job& job, int64_t image) const {
    Scalar* to = static_cast<Scalar*>(p_.mean) + image * p_.C + job.channel;
    for (int64_t c = 0; c < job.channels; ++c) to[c] = mean_.data()[c];
  }

  // The rows of x up to `last`, minus their mean.
  void fill_centred(const Job& job, int64_t image, int64_t last) {
    ring_.fill_to(last, [&](int64_t i, Scalar* to) {
      load_row(p_.x.row<T>(image, i, job.channel), p_.x.stride[2], p_.W, job.channels, to, width_,
               [mean = mean_.data()](V x, int64_t c)
                   __attribute__((always_inline)) { return x - load(mean + c); });
    });
  }

  const CentredDwconvParams& p_;
  const Cut<T> cut_;
  const int64_t width_;
  const Workspace<T> sums_;
  RowRing<Scalar> ring_;  // x minus its mean
  Taps<Scalar, kSide> taps_;
  PerChannel<Scalar> mean_;  // of x
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
